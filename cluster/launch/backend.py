"""The interface between what is to be started and how it is started.

A launch backend turns a request into one command, which runs until the last rank has ended.
Everything else is the same for all backends: the command runs in a process group of its own,
signals are forwarded to it, and its end is explained from what the ranks left in the run folder.

To add a backend, write one file in `cluster/launch/backends/` and register it in the table there.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cluster.launch.hosts import Hosts


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass(frozen=True)
class LaunchRequest:
    """What to start, and where.

    module: a module that runs as `python -m MODULE`, once on each rank.
    arguments: the words after it, the same on each rank.
    hosts: the machines, and how many ranks each of them gets.
    port: the TCP port on the first host at which the ranks meet.
    """

    module: str
    arguments: Sequence[str]
    hosts: Hosts
    port: int = field(default_factory=free_port)


class LaunchCommand(NamedTuple):
    """A command, and the variables that it needs beside those of this process."""

    words: Sequence[str]
    environment: Mapping[str, str] = {}


class LaunchBackend(Protocol):
    """One way to start ranks on machines."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ADDPError where this backend could not start the request from here."""

    def command(self, request: LaunchRequest) -> LaunchCommand:
        """Return the command that starts all ranks of the request and ends after them.

        Each rank finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its
        environment, or the variables of Slurm or MPI that `trainer.distributed.world` knows.
        """
