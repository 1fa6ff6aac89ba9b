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
import platform
import sys
import time
from pathlib import Path
from typing import Any

from trainer.preflight.cgroups import check_groups, read_limits
from trainer.preflight.disk import check_run_folder
from trainer.preflight.finding import Finding, guarded
from trainer.preflight.gpus import GPU, check_gpus, check_kernel_log, check_use, kernel_log, see_all
from trainer.preflight.leftovers import check_leftovers
from trainer.preflight.machine import (
    check_clock,
    check_limits,
    check_memory,
    check_processor,
    check_shared_memory,
    soft_limits,
)
from trainer.preflight.network import check_network, read_interfaces, read_ports
from trainer.run_folder import EXIT_CONFIG, EXIT_DONE


def check_node(run: Path | None, gpus: list[GPU] | None = None) -> list[Finding]:
    """Return what was found on this node.

    run: the run folder; None: no folder is looked at. gpus: takes those of the node.
    """
    gpus = [] if gpus is None else gpus

    def drivers() -> list[Finding]:
        found, findings = check_gpus()
        gpus.extend(found)
        return findings

    findings = guarded("run folder", lambda: check_run_folder(run)) if run else []
    findings += guarded("memory", check_memory)
    findings += guarded("container limits", lambda: check_groups(read_limits()))
    findings += guarded("GPUs", lambda: iter(drivers()))
    findings += guarded("GPU memory", lambda: check_use(gpus))
    if gpus:
        findings += guarded("kernel log", lambda: check_kernel_log(gpus, kernel_log()))
    findings += guarded("shared memory", lambda: check_shared_memory(len(gpus)))
    findings += guarded("processor", lambda: check_processor(len(gpus)))
    findings += guarded("clock", check_clock)
    findings += guarded("limits", lambda: check_limits(soft_limits(), bool(read_ports())))
    findings += guarded("network", lambda: check_network(read_interfaces(), read_ports()))
    findings += guarded("leftovers", lambda: check_leftovers(run or Path()))
    return findings


def report(findings: list[Finding], seconds: float) -> dict[str, Any]:
    """Return what `--json` prints."""
    reasons = [f"{one.name}: {one.text}" for one in findings if one.makes_unfit]
    return {
        "host": platform.node(),
        "fit": not reasons,
        "reasons": reasons,
        "seconds": round(seconds, 3),
        "checks": [one._asdict() for one in findings],
    }


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
        from trainer.preflight.device import check_devices

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
