"""Processes of this machine, as the kernel shows them. A process may end at any moment, so nothing
here raises for one that is gone."""

from __future__ import annotations

import ctypes
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: a forked child must not


def state_of(pid: int) -> str:
    """Return the state of a process as a letter: T is stopped, Z is dead and not waited for.

    Empty where there is no such process.
    """
    return next(iter(_status(pid)), "")


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; None where there is no such process."""
    try:
        return int(_status(pid)[1])
    except (ValueError, IndexError):
        return None


def start_of(pid: int) -> int:
    """Return when a process began, in clock ticks after the boot.

    0 where there is none, or where it has ended and is only not waited for.
    """
    status = _status(pid)
    try:
        return 0 if status[0] in "ZX" else int(status[19])
    except (ValueError, IndexError):
        return 0


def command_of(pid: int | None) -> bytes:
    """Return the words that started a process, each of them ended by a zero byte.

    Empty where there is no such process.
    """
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def machine() -> str:
    """Return what tells where the number of a process means what it means here.

    It names this start of the kernel, and this name space of processes. Empty where the kernel does
    not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def signal_at_end_of_parent(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    A parent that was gone before is not noticed: compare `os.getppid()` afterwards. It may be
    called between fork and exec.
    """
    _PRCTL(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _status(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may contain anything: first the
    state, then the parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
