"""Ranks of an earlier start that nobody watches any more. They hold GPU memory, and the run's lock.
Imports no torch."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from trainer.preflight.finding import Finding

_RANK = "trainer.pretrain"
_WATCHERS = ("cluster.supervise", "deepspeed.launcher", "torch.distributed", "srun", "slurmstepd")


class Process(NamedTuple):
    """A process of this machine. parent: the words that started its parent; empty where that is
    gone."""

    pid: int
    words: tuple[str, ...]
    parent_pid: int
    parent: tuple[str, ...] = ()


def rank_processes() -> list[Process]:
    """Return the processes of this machine that train, as far as this user may see them."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = tuple(process.info["cmdline"] or ())
        if not any(_RANK in word for word in words[:4]):
            continue
        parent_pid: int = process.info["ppid"] or 0
        try:
            parent = tuple(psutil.Process(parent_pid).cmdline())
        except (psutil.Error, ValueError):
            parent = ()
        found.append(Process(process.pid, words, parent_pid, parent))
    return found


def orphans(processes: Iterable[Process]) -> list[Process]:
    """Return those whose starter is gone, so that process 1 (or a user's systemd) has them. In a
    container, process 1 may be their starter."""
    return [
        process
        for process in processes
        if (process.parent_pid == 1 or Path(next(iter(process.parent), "")).name == "systemd")
        and not any(name in word for word in process.parent for name in _WATCHERS)
    ]


def heartbeat_pids(run: Path) -> set[int]:
    """Return the processes of this host that have given the run's signs of life."""
    found = set()
    for path in (run / "heartbeats").glob("rank-*.json"):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("host") == platform.node():
            found.add(int(record.get("pid") or 0))
    return found


def check_leftovers(run: Path, processes: Iterable[Process] | None = None) -> Iterator[Finding]:
    """Check that no rank of an earlier start is left. processes: of this machine; None: asked."""
    found = orphans(rank_processes() if processes is None else processes)
    ours = [process for process in found if process.pid != os.getpid()]
    beating = heartbeat_pids(run)
    same = [
        process
        for process in ours
        if process.pid in beating
        or any(word.removeprefix("run=") == str(run) for word in process.words)
    ]
    others = [process for process in ours if process not in same]
    if same:
        yield _finding("FAILED", same, f"ranks of {run} whose starter is gone still run")
    if others:
        yield _finding("warning", others, "ranks whose starter is gone still run")
    if not ours:
        yield Finding("leftovers", "ok", "no rank of an earlier start is left")


def _finding(state: str, processes: list[Process], words: str) -> Finding:
    pids = " ".join(str(process.pid) for process in processes)
    found = f"{words}: {pids}"
    return Finding(
        "leftovers", "FAILED" if state == "FAILED" else "warning", found, f"end them: kill {pids}"
    )
