"""Processes of this machine, as the kernel shows them. A process may end at any moment, so nothing
here raises for one that is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MOST_ABOVE = 10  # processes on the way up to the first launcher
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


class Launcher:
    """The processes above one, as far as they belong to a launcher, as they are now.

    A launcher that is killed signals nobody, and what it has started would run on unseen. What
    somebody starts by hand has none: it may outlive the shell that it came from.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        *,
        between: Sequence[bytes] = (),
        last: bytes | None = None,
        pid: int | None = None,
    ) -> None:
        """words: the command of a launcher has one of them. between: the command of what runs
        between two launchers has one. last: the command of a launcher that watches its own one has
        it. pid: the process whose launcher it is; None for this process.
        """
        self._parents: dict[int, int] = {}
        process, known = os.getpid() if pid is None else pid, tuple(words)
        while len(self._parents) < _MOST_ABOVE:
            parent = parent_of(process)
            command = b"" if parent is None else command_of(parent)
            if parent is None or parent <= 1 or not any(word in command for word in known):
                break
            self._parents[process] = parent
            if last is not None and last in command:
                return
            process, known = parent, (*words, *between)
        if self._parents and (above := parent_of(process)) is not None:
            self._parents[process] = above

    @property
    def is_gone(self) -> bool:
        """Whether one of these processes has another parent now: its own is gone."""
        return any(parent_of(process) != parent for process, parent in self._parents.items())


def _status(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may contain anything: first the
    state, then the parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
