"""Whether the launcher of this supervisor is still there. One that is killed signals nobody, and
what it has started would run on unseen. Imports no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from model.processes import command_of, parent_of

_LAUNCHERS = (
    *(b"deepspeed.launcher", b"torch.distributed", b"torchrun", b"mpirun", b"orted", b"prted"),
    *(b"slurmstepd", b"cluster.cli", b"cluster.launch", b"/addp\0"),
)
# Between a launcher and its hosts: `sshd: user@notty` runs `bash -c "..."`.
_BETWEEN = (b"sshd", b"sh\0-c\0", b"pdsh", b"srun")
_MOST = 10  # processes on the way up


class _Link(NamedTuple):
    process: int
    parent: int


class Launcher:
    """The processes above this one, as far as they belong to a launcher, as they are now.

    A supervisor that somebody starts by hand has none: it may outlive the shell that it came from.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._chain: list[_Link] = []
        process = os.getpid() if pid is None else pid
        while len(self._chain) < _MOST:
            parent = parent_of(process)
            command = b"" if parent is None else command_of(parent)
            known = _LAUNCHERS + (_BETWEEN if self._chain else ())
            if parent is None or parent <= 1 or not any(word in command for word in known):
                break
            self._chain.append(_Link(process, parent))
            process = parent
        if self._chain and (above := parent_of(process)) is not None:
            self._chain.append(_Link(process, above))

    @property
    def is_gone(self) -> bool:
        """Whether a process of the chain has another parent now: its own is gone."""
        return any(parent_of(link.process) != link.parent for link in self._chain)
