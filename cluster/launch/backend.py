"""The interface between what is to be started and how it is started.

A launch backend turns a request into a plan: the commands that start it, and the files that these
read. A plan can be shown before anything happens. Everything else is the same for all backends:
files are written first, a command runs in a process group of its own, stops reach the supervisors,
and a run's end is read from its folder.

A request is general: one module with its arguments, on hosts, a number of processes on each.
`addp launch` asks for one `cluster.supervise` on each host, which starts the ranks there; `addp
train` asks for the ranks themselves, on this machine.

To add a backend, write one file in `cluster/launch/backends/` and register it in the table there.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from cluster.launch.hosts import Hosts

HERE = "here"  # where a command runs that this process starts


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class BackendOptions(BaseModel):
    """The options that only one backend has: each backend derives its own model from this one.

    The fields become options of `addp launch`; their descriptions are its help.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


Options = TypeVar("Options", bound=BackendOptions)


@dataclass(frozen=True)
class LaunchRequest:
    """What to start, and where.

    module: a module that runs as `python -m MODULE`, once for each process.
    arguments: the words after it, the same everywhere. They hold no secret.
    hosts: the machines, and how many processes each of them gets. For a scheduler that chooses the
    machines by itself, only their number counts.
    port: the TCP port on the first host at which the processes of the launcher meet.
    folder: where the backend's files go. All hosts share it where each of them reads it.
    name: of the job, for people and schedulers.
    ranks_per_host: the ranks that run on each host in the end, for which a scheduler has to reserve
    devices; None: as many as there are processes.
    grace: seconds that the ranks may take to save when they are asked to stop.
    carried: names of variables of this process that must reach every host.
    options: the backend's own.
    """

    module: str
    arguments: Sequence[str]
    hosts: Hosts
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    name: str = "addp"
    ranks_per_host: int | None = None
    grace: float = 60.0
    carried: Sequence[str] = ()
    options: BackendOptions | None = None

    def options_of(self, model: type[Options]) -> Options:
        """Return the options for the backend that has this model, by default its defaults."""
        return self.options if isinstance(self.options, model) else model()


@dataclass(frozen=True)
class PlannedCommand:
    """A command of a plan.

    words: the command and its arguments.
    environment: the variables that it needs beside those of this process. Their names are shown in
    plans, their values are not.
    where: HERE, or the host on which somebody runs `addp launch` again to start it.
    """

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    where: str = HERE


@dataclass(frozen=True)
class PlannedFile:
    """A file that is written before the commands run. Only its owner may read it.

    private: it holds the values of variables: it is never shown, and is removed after the launch.
    """

    path: Path
    text: str
    private: bool = False


@dataclass(frozen=True)
class LaunchPlan:
    """How a request is started.

    commands: one that starts everything from here, or one for each host.
    files: what the commands read.
    waits: whether the commands run until the last process has ended. Otherwise they submit the job
    to a scheduler, which sees it through.
    afterwards: sentences for people on what to do with a job that was submitted.
    """

    commands: Sequence[PlannedCommand]
    files: Sequence[PlannedFile] = ()
    waits: bool = True
    afterwards: Sequence[str] = ()


class LaunchBackend(Protocol):
    """One way to start processes on machines."""

    def check(self, request: LaunchRequest) -> None:
        """Raise ADDPError where this backend could not start the request from here."""

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        """Return the commands and files that start the request. Nothing is touched yet.

        Each process finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its
        environment, or the variables of Slurm or MPI that `trainer.distributed.world` knows. Where
        each host gets one process, RANK is therefore the number of the host.
        """
