"""Other settings of one of the demo's trainings, on the data of a finished demo: what they cost and
what they reach on held-out images.

    python -m benchmarks.demo_recipes runs/demo predictor \\
        "schedule.total=2250 optimizer.base_lr=0.032" \\
        "schedule.total=1125 batch.global_batch=32 batch.micro=16 optimizer.base_lr=0.016"

Each further argument is one setting: overrides of the recipe, separated by spaces. The recipe
itself is trained first. --seeds: of each setting; settings take turns, so that a busy hour meets
all of them alike. CPU seconds are those of all processes of the training, with their start.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ADDP = [sys.executable, "-m", "cluster.cli"]
SUITES = {"tokenizer": "held-out", "predictor": "held-out", "addp": "held-out,knn,linear"}
METRICS = ("psnr", "codebook_used", "gain", "top1_k20", "top1")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def data(demo: Path, stage: str) -> list[str]:
    """Return the overrides that name the demo's data, and its networks."""
    if stage == "tokenizer":
        return [f"data.images={demo / 'images'}"]
    frozen = ("tokenizer", "predictor") if stage == "addp" else ()
    return [
        f"data.tokens={demo / 'tokens' / 'train'}",
        *(f"{name}.weights={demo / name / 'network.safetensors'}" for name in frozen),
    ]


def measure(demo: Path, stage: str, run: Path, overrides: list[str]) -> dict[str, float]:
    """Train, and return the CPU seconds and the metrics on held-out images."""
    before = cpu_seconds()
    command = [*ADDP, "train", f"demo-{stage}", f"run={run}", *data(demo, stage), *overrides]
    subprocess.run([*command, "--processes", "2"], check=True, capture_output=True)
    row = {"cpu_seconds": round(cpu_seconds() - before, 1)}
    evaluate = [*ADDP, "evaluate", str(run), "--suite", SUITES[stage], "--batch", "64", "--json"]
    evaluate += ["--images", str(demo / "images")]
    if stage != "tokenizer":
        tokens = demo / "tokens"
        evaluate += ["--tokens", str(tokens / "val"), "--train-tokens", str(tokens / "train")]
    done = subprocess.run(evaluate, check=True, capture_output=True)
    for result in json.loads(done.stdout):
        row |= {name: value for name, value in result["figures"].items() if name in METRICS}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the folder of a finished demo")
    parser.add_argument("stage", choices=sorted(SUITES))
    parser.add_argument("settings", nargs="*", help="overrides of the recipe, as one argument each")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    arms: dict[str, list[dict[str, float]]] = {name: [] for name in ("", *options.settings)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for number, (arm, rows) in enumerate(arms.items()):
                run = Path(folder) / f"{number}-{seed}"
                overrides = [*arm.split(), f"seed={seed}"]
                rows.append(measure(options.demo.resolve(), options.stage, run, overrides))
                print(f"{arm or 'the recipe'}: {rows[-1]}", file=sys.stderr, flush=True)
    summary: list[dict[str, Any]] = [
        {
            "setting": arm or "the recipe",
            **{key: round(statistics.mean(row[key] for row in rows), 4) for key in rows[0]},
            "rows": rows,
        }
        for arm, rows in arms.items()
    ]
    versions = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    print(json.dumps({"stage": options.stage, **versions, "settings": summary}, indent=1))


if __name__ == "__main__":
    main()
