"""The run folder, as one node sees it: can it be written, has it room, how fast is it, and does its
server have the same time. Imports no torch."""

from __future__ import annotations

import errno
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.preflight.finding import Finding, size

_NAME = "run folder"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = b"addp check" * 400
_FSYNCS = 3
_ENOUGH_SECONDS = 0.3  # for measuring: a slow disk shows in one fsync


class DiskLimits(NamedTuple):
    """What a run folder must have. Bytes, files, seconds."""

    least_free: float = 512 * 2**20
    little_free: float = 10 * 2**30
    least_files: int = 1000
    slow_fsync: float = 0.5
    clock_apart: float = 5.0


class DiskState(NamedTuple):
    """What was measured in a folder.

    free, files: bytes and inodes that are left; files is None where the file system counts none.
    fsync: median seconds until a small write is on the disk. apart: seconds by which the file
    system dates a new file after this node's own clock.
    """

    free: int
    files: int | None
    fsync: float
    apart: float


def nearest_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder that exists and that it would be made in."""
    there = path.absolute()
    # Unlike Path.exists, os.access raises no error where a folder may not be entered.
    while not os.access(there, os.F_OK) and there != there.parent:
        there = there.parent
    return there


def measure(folder: Path) -> DiskState:
    """Write to a folder, and remove what was written. Raises OSError."""
    stats = os.statvfs(folder)
    seconds = []
    began = time.monotonic()
    with tempfile.TemporaryFile(prefix=".addp-check-", dir=folder) as file:
        for _ in range(_FSYNCS):
            start = time.monotonic()
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.monotonic() - start)
            if time.monotonic() - began > _ENOUGH_SECONDS:
                break
        apart = os.fstat(file.fileno()).st_mtime - time.time()
    free = stats.f_bavail * stats.f_frsize
    return DiskState(
        free, stats.f_favail if stats.f_files else None, statistics.median(seconds), apart
    )


def check_run_folder(run: Path, limits: DiskLimits | None = None) -> Iterator[Finding]:
    """Check that a run can write into its folder, which need not exist yet."""
    there = nearest_folder(run)
    if not there.is_dir():
        yield Finding(_NAME, "FAILED", f"{there} is a file, not a folder", "name another folder")
        return
    try:
        state = measure(there)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            todo = "make room, or lower checkpoint.keep"
            yield Finding(_NAME, "FAILED", f"{there} is full ({reason})", todo, shared=True)
        else:
            todo = "look whether its storage is mounted here, and at its owner and mode"
            yield Finding(_NAME, "FAILED", f"{there} cannot be written: {reason}", todo)
        return
    made = "" if there == run.absolute() else f" (will be made in {there})"
    yield from judge_disk(f"{run}{made}", state, limits or DiskLimits())


def judge_disk(folder: str, state: DiskState, limits: DiskLimits) -> Iterator[Finding]:
    """Yield one finding about the folder, and one for each measure that is out of order."""
    yield Finding(
        _NAME,
        "ok",
        f"{folder} can be written: {size(state.free)} free, "
        f"{state.fsync * 1000:.1f} ms until a small write is on it",
    )
    room = f"{folder} has {size(state.free)} left"
    if state.free < limits.least_free:
        todo = "make room, or lower checkpoint.keep"
        yield Finding("disk space", "FAILED", room, todo, shared=True)
    elif state.free < limits.little_free:
        todo = "compare with the size of a checkpoint (`addp plan`)"
        yield Finding("disk space", "warning", room, todo)
    if state.files is not None and state.files < limits.least_files:
        found = f"{folder} has room for {state.files} more files (inodes)"
        yield Finding("disk space", "FAILED", found, "remove files there", shared=True)
    if state.fsync > limits.slow_fsync:
        found = f"{folder} takes {state.fsync:.2f} s until a small write is on it"
        todo = "look at the load of its storage; each file of a checkpoint waits for that"
        yield Finding("disk speed", "warning", found, todo)
    if abs(state.apart) > limits.clock_apart:
        way = "behind" if state.apart > 0 else "ahead of"
        found = f"this node's clock is {abs(state.apart):.1f} s {way} that of {folder}'s storage"
        yield Finding("clock", "warning", found, "synchronise both (chrony, ntpd)")
