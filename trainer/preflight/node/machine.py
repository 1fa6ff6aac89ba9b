"""A machine beside its GPUs and networks: memory, limits, clock, processor. Imports no torch.

Each check takes the places that it reads as arguments, so that it can be shown another machine.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from model.precision import CPUINFO, cpu_flags, emulates_bf16
from trainer.preflight.finding import Finding, size

_MIB, _GIB = 2**20, 2**30
_LEAST_MEMORY, _LITTLE_MEMORY = 256 * _MIB, 2 * _GIB
_SHM_A_GPU = 32 * _MIB  # NCCL's buffers between the GPUs of a node
_USUAL_SHM = _GIB
_FEWEST_FILES, _FEW_FILES = 256, 4096
_FEW_PROCESSES = 4096
_NOT_SYNCHRONISED = 5  # what adjtimex returns: TIME_ERROR
_TIMEX_BYTES = 512  # more than its structure takes on any processor
_EARLIEST = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()
_LATEST = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC).timestamp()
_UNLIMITED = resource.RLIM_INFINITY


def check_memory(available: int | None = None) -> Iterator[Finding]:
    """Check the memory of the machine. available: bytes; None: what the system says."""
    memory = psutil.virtual_memory()
    left = memory.available if available is None else available
    found = f"{size(left)} of {size(memory.total)} available"
    if left < _LEAST_MEMORY:
        yield Finding("memory", "FAILED", found, "end what takes it (`ps aux --sort -rss`)")
    elif left < _LITTLE_MEMORY:
        todo = "look what takes it (`ps aux --sort -rss`); a checkpoint's copy lies there"
        yield Finding("memory", "warning", found, todo)
    else:
        yield Finding("memory", "ok", found)


def check_shared_memory(gpus: int, folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Check the folder through which the processes of a node exchange data. gpus: of the node."""
    name = "shared memory"
    try:
        stats = os.statvfs(folder)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        found = f"{folder}: {error.strerror}"
        yield Finding(name, "FAILED" if gpus > 1 else "warning", found, "mount a tmpfs there")
        return
    free = stats.f_bavail * stats.f_frsize
    found = f"{folder} has {size(free)} of {size(stats.f_blocks * stats.f_frsize)} free"
    larger = (
        "make it larger (docker --shm-size=8g; in Kubernetes an emptyDir of medium Memory), or "
        "remove what earlier runs left there"
    )
    if not writable:
        yield Finding(name, "FAILED" if gpus > 1 else "warning", f"{folder} cannot be written")
    elif gpus > 1 and free < gpus * _SHM_A_GPU:
        yield Finding(name, "FAILED", f"{found}; NCCL needs more for {gpus} GPUs", larger)
    elif free < (_USUAL_SHM if gpus > 1 else _SHM_A_GPU):
        yield Finding(name, "warning", found, larger)
    else:
        yield Finding(name, "ok", found)


def soft_limits() -> dict[str, int]:
    """Return this process's own limits: open files, processes, locked memory and core files, the
    last two in bytes."""
    names = {
        "files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "locked": resource.RLIMIT_MEMLOCK,
        "core": resource.RLIMIT_CORE,
    }
    return {name: resource.getrlimit(number)[0] for name, number in names.items()}


def check_limits(limits: dict[str, int], has_infiniband: bool) -> Iterator[Finding]:
    """Check what the system allows one process. limits: as `soft_limits` returns them."""

    def words(name: str, as_size: bool = False) -> str:
        value = limits[name]
        return "unlimited" if value == _UNLIMITED else size(value) if as_size else f"{value:,}"

    def few(name: str, least: int) -> bool:
        return limits[name] != _UNLIMITED and limits[name] < least

    name = "limits"
    yield Finding(
        name,
        "ok",
        f"{words('files')} open files, {words('processes')} processes, "
        f"{words('locked', True)} of locked memory, core files of {words('core', True)}",
    )
    raised = "raise it in /etc/security/limits.conf, or with `ulimit -n` where the launcher starts"
    if few("files", _FEW_FILES):
        found = f"a process may open {words('files')} files only"
        yield Finding(name, "FAILED" if few("files", _FEWEST_FILES) else "warning", found, raised)
    if few("processes", _FEW_PROCESSES):
        found = f"a user may have {words('processes')} processes and threads only"
        yield Finding(name, "warning", found, "raise it (`ulimit -u`): each rank has dozens")
    if has_infiniband and limits["locked"] != _UNLIMITED:
        found = f"only {words('locked', True)} may be locked, and InfiniBand locks its buffers"
        yield Finding(name, "warning", found, "set `ulimit -l unlimited`, for sshd or slurmd too")


def check_clock(now: float | None = None, synchronised: bool | None = None) -> Iterator[Finding]:
    """Check that the time can be right. now: seconds since 1970, synchronised: what the kernel says
    of its clock; None: asked here."""
    moment = time.time() if now is None else now
    kept = _is_synchronised() if synchronised is None else synchronised
    shown = datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if not _EARLIEST < moment < _LATEST:
        todo = "set it, and keep it with chrony or ntpd; stores refuse requests of another time"
        yield Finding("clock", "FAILED", f"it says {shown}", todo)
        return
    by = "" if kept is None else f", {'' if kept else 'not known to be '}kept by a time server"
    yield Finding("clock", "ok", shown + by)


def _is_synchronised() -> bool | None:
    """Return whether the kernel's clock follows a time server; None if that cannot be asked."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    answer: int = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # zeros: it changes nothing
    return None if answer < 0 else answer != _NOT_SYNCHRONISED


def check_processor(gpus: int, cpuinfo: Path = CPUINFO) -> Iterator[Finding]:
    """Check what the processor can compute. gpus: of the node, where it computes nothing."""
    flags = cpu_flags(cpuinfo)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{platform.machine()}, {usable} of {os.cpu_count()} cores usable"
    if flags is None:
        yield Finding("processor", "ok", f"{found}; its instructions cannot be read")
    elif emulates_bf16(flags) and not gpus:
        yield Finding(
            "processor",
            "warning",
            f"{found}, without bf16 instructions: bfloat16 would be emulated, hundreds of times "
            "as slow as float32",
            "set precision=fp32",
        )
    else:
        has = "without" if emulates_bf16(flags) else "with"
        yield Finding("processor", "ok", f"{found}, {has} bf16 instructions")
