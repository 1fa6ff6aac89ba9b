"""The supervisors among the processes that a launcher has started on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.launch.supervised import MODULE
from model.processes import command_of


def supervisors_below(pid: int) -> list[int]:
    """Return the supervisors among a process and all that it started, as far as they run here."""
    found, waiting = [], [pid]
    while waiting:
        process = waiting.pop()
        if MODULE in _words(process):
            found.append(process)  # what it has started are ranks
        else:
            waiting += _children(process)
    return found


def _words(pid: int) -> Sequence[str]:
    """Return the first words of a process: `python -u -m MODULE`."""
    return command_of(pid).decode(errors="replace").split("\0")[:4]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, tasks.read_text().split())
        except OSError:  # it has ended
            continue
    return found
