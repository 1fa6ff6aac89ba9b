"""The demo of this checkout beside that of others: CPU minutes, minutes, and what was reached.

    git worktree add ../before COMMIT
    python -m benchmarks.demo ../before .

Each checkout makes the whole demo in a folder of its own, one after the other; --repeats takes
turns. All run in this environment. --options: of `addp demo`, as "--scale 0.1". What the demo
printed is left in FOLDER/NUMBER.log, FOLDER from --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(checkout: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Make the demo of a checkout, and return what it took and reached."""
    command = [sys.executable, "-m", "cluster.cli", "demo", "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    began, cpu = time.monotonic(), cpu_seconds()
    with out.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, cwd=checkout, env=environment, stdout=log, stderr=log)
    spent = {
        "checkout": str(checkout),
        "minutes": round((time.monotonic() - began) / 60, 2),
        "cpu_minutes": round((cpu_seconds() - cpu) / 60, 2),
    }
    targets = json.loads((out / "addp" / "evaluation" / "targets.json").read_text())
    return {**spent, "reached": {t["name"]: t["value"] for t in targets}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--options", default="", help="of addp demo, as one argument")
    parser.add_argument("--keep", type=Path, help="folder for the demos; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for repeat in range(options.repeats):
            for number, checkout in enumerate(options.checkouts):
                out = folder / f"{number}-{repeat}"
                rows.append(run(checkout.resolve(), out, options.options.split()))
                print(rows[-1], file=sys.stderr, flush=True)
    versions = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({**versions, "cores": os.cpu_count(), "demos": rows}, indent=1))


if __name__ == "__main__":
    main()
