"""Find out whether this node is fit to train: what needs no other node, and no torch.

    python -m trainer.preflight.node [--json] [--device] [RUN]

RUN is the run folder. --device also computes on each GPU (or the CPU) by a process of its own, and
takes up to some minutes; without it the answer takes less than a second. Exits with 0 where the
node is fit, else with 78. JSON: {"host", "fit", "reasons": why it is not, "seconds", "checks":
[{"name", "state": "ok" | "warning" | "FAILED", "found", "todo", "shared"}]}. A fault of what all
nodes share, such as a full disk of the run folder, is FAILED, but the node is fit: without it, a
run would fare no better.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from trainer.preflight.finding import guarded
from trainer.preflight.node.fitness import check_node, report
from trainer.preflight.node.gpus import see_all
from trainer.run_folder import EXIT_CONFIG, EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """Check this node and print what was found. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.preflight.node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="the run folder")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--device", action="store_true", help="also compute on each GPU")
    options = parser.parse_args(arguments)
    see_all()
    began = time.monotonic()
    findings = check_node(options.run.absolute() if options.run else None)
    if options.device:
        from trainer.preflight.node.device import check_devices

        findings += guarded("device", check_devices, seconds=600)
    answer = report(findings, time.monotonic() - began)
    if options.json:
        print(json.dumps(answer))
    else:
        for one in findings:
            print(f"{one.name:18s} {one.state:8s} {one.text}")
        print("fit" if answer["fit"] else "not fit")
    return EXIT_DONE if answer["fit"] else EXIT_CONFIG


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a thread may hang in a file system that does not answer
