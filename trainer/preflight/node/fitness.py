"""Whether one node is fit to train: all checks that need no other node. Imports no torch."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from trainer.preflight.finding import Finding, guarded
from trainer.preflight.node.cgroups import check_groups, read_limits
from trainer.preflight.node.disk import check_run_folder
from trainer.preflight.node.gpus import GPU, check_gpus, check_kernel_log, check_use, kernel_log
from trainer.preflight.node.leftovers import check_leftovers
from trainer.preflight.node.machine import (
    check_clock,
    check_limits,
    check_memory,
    check_processor,
    check_shared_memory,
    soft_limits,
)
from trainer.preflight.node.network import check_network, read_interfaces, read_ports


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
