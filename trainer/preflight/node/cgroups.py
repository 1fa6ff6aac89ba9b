"""What a container, a Slurm job or a systemd slice leaves a process of the machine (control groups,
both versions). Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.preflight.finding import Finding, size

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_LEAST_MEMORY, _LITTLE_MEMORY = 256 * 2**20, 2 * 2**30
_FEW_PROCESSES = 512
_NO_LIMIT = 1 << 60  # bytes; the first version writes a huge number


class Limits(NamedTuple):
    """The tightest limits of a process's groups; None where there is no limit.

    memory, memory_used: bytes, of the group that has least left; files that the system only keeps
    in memory do not count as used. cores: processors' time that it may use in a second. processes:
    processes and threads that it may still start. killed: how often a process of the group was
    ended since its memory ran out.
    """

    memory: int | None = None
    memory_used: int = 0
    cores: float | None = None
    processes: int | None = None
    killed: int = 0


def read_limits(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> Limits:
    """Return the limits of this process.

    root: where the groups are mounted. membership: the file that names this process's groups.
    """
    limits = Limits()
    for folder in _groups(root, membership):
        limits = _tighter(limits, folder)
    return limits


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of a process's groups and of all groups that hold them.

    A container often sees its own group at the root, under a path that is not there.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    seen = set()
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        top = root / controllers.removeprefix("name=") if controllers else root
        for base in (top, root / "unified") if not controllers else (top,):
            folder = base / path.lstrip("/")
            for group in (folder, *folder.parents):
                if group.is_relative_to(base) and group not in seen:
                    seen.add(group)
                    yield group


def _tighter(limits: Limits, group: Path) -> Limits:
    """Return the limits, as far as the group does not set tighter ones."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most = _number(group / limit)
        if most is None or most >= _NO_LIMIT:
            continue
        now = max(0, (_number(group / used) or 0) - _cached(group))
        if limits.memory is None or most - now < limits.memory - limits.memory_used:
            limits = limits._replace(memory=most, memory_used=now)
    cores = _cores(group)
    if cores is not None and (limits.cores is None or cores < limits.cores):
        limits = limits._replace(cores=cores)
    threads, started = _number(group / "pids.max"), _number(group / "pids.current")
    if threads is not None:
        left = max(0, threads - (started or 0))
        if limits.processes is None or left < limits.processes:
            limits = limits._replace(processes=left)
    killed = _field(group / "memory.events", "oom_kill") or 0
    return limits._replace(killed=max(limits.killed, killed))


def _cached(group: Path) -> int:
    """Return the bytes of files that the system keeps in a group's memory, and gives up for
    whoever needs it: a job that reads its data for hours fills its limit with them."""
    stat = group / "memory.stat"
    for names in (("total_active_file", "total_inactive_file"), ("active_file", "inactive_file")):
        known = [count for name in names if (count := _field(stat, name)) is not None]
        if known:
            return sum(known)
    return 0


def _cores(group: Path) -> float | None:
    """Return how many processors' time a group may use; None where it is not limited."""
    words = _text(group / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / max(1, int(words[1]))
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is none, as for `max` and -1."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str) -> int | None:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None


def check_groups(limits: Limits) -> Iterator[Finding]:
    """Check the limits of this process's groups."""
    name = "container limits"
    raised = "raise the limit of the container or the job"
    parts = []
    if limits.memory is not None:
        parts.append(f"{size(limits.memory)} of memory, {size(limits.memory_used)} used")
    if limits.cores is not None:
        parts.append(f"the time of {limits.cores:g} cores")
    if limits.processes is not None:
        parts.append(f"{limits.processes:,} more processes")
    yield Finding(name, "ok", ", ".join(parts) or "none")
    if limits.memory is not None:
        left = limits.memory - limits.memory_used
        found = f"{size(max(0, left))} are left of the {size(limits.memory)} that it may use"
        if left < _LEAST_MEMORY:
            yield Finding("memory", "FAILED", found, raised)
        elif left < _LITTLE_MEMORY:
            yield Finding("memory", "warning", found, raised)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if limits.cores is not None and limits.cores < min(1.0, cores):
        found = f"a process may use {limits.cores:g} of a core: it is halted for most of each 0.1 s"
        yield Finding("processor", "warning", found, raised)
    if limits.processes is not None and limits.processes < _FEW_PROCESSES:
        found = f"only {limits.processes} more processes and threads may start"
        yield Finding(name, "warning", found, f"{raised} (pids); each rank has dozens of threads")
    if limits.killed:
        found = f"{limits.killed} processes were killed here since memory ran out"
        yield Finding("memory", "warning", found, "give it more memory, or start fewer ranks")
