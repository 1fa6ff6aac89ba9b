"""The faults that `benchmarks.faults` and `benchmarks.ettr` put into a running job.

Each function puts one fault into a job, and returns the moment at which it came, in epoch seconds.
turn: which rank or node is hit, so that repeats hit each of them.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.supervised import Job

Inject = Callable[[Job, int], float]
NODES = 2  # that train, one rank on each
_LINK_SECONDS = 25.0  # for which a link is cut: beyond the 10 to 15 s after which a node is lost
_OFF_SECONDS = 15.0  # for which a host stays off
_FULL_SECONDS = 4.0  # for which a disk stays full: a save falls due, but not the last one
_SLOW_SECONDS = 20.0  # for which a rank gets half of its time


@dataclass(frozen=True)
class Fault:
    """A fault, and what has to come of it.

    what: for the table. limit: seconds within which it has to be noticed; None: where nothing is
    to be noticed, since nothing may restart. options: of `addp launch`. nodes: the hosts listed.
    fewer: whether the run ends on fewer ranks. outage: seconds for which it cannot go on. again:
    whether `addp launch` itself ends, so that its user or scheduler gives the command again. disk:
    whether the run lies on the small disk.
    """

    what: str
    inject: Inject
    limit: float | None
    options: tuple[str, ...] = ()
    nodes: tuple[int, ...] = (1, 2)
    fewer: bool = False
    outage: float = 0.0
    again: bool = False
    disk: bool = False


def _signal(pid: int, number: int) -> float:
    os.kill(pid, number)
    return time.time()


def _rank(number: int) -> Inject:
    return lambda job, turn: _signal(job.rank(turn % NODES), number)


def _supervisor(number: int) -> Inject:
    return lambda job, turn: _signal(job.supervisor(turn % NODES), number)


def _kill_node_launcher(job: Job, turn: int) -> float:
    return _signal(job.node_launcher(turn % NODES), signal.SIGKILL)


def _stop_launch(job: Job, turn: int) -> float:
    return _signal(job.launcher(), signal.SIGTERM)


def _slow_rank(job: Job, turn: int) -> float:
    """Let a rank run for half a second in each second."""
    pid, moment = job.rank(turn % NODES), time.time()
    try:
        while time.time() - moment < _SLOW_SECONDS:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.5)
    except ProcessLookupError:
        pass  # it has come to its end meanwhile
    return moment


def _cut_link(job: Job, turn: int) -> float:
    job.hosts[1].cut_link()
    moment = time.time()
    time.sleep(_LINK_SECONDS)
    job.hosts[1].restore_link()
    return moment


def _power_off(job: Job, turn: int) -> float:
    """End the host of rank 1 as a power cut does: none of its connections is closed."""
    job.host_of(1).kill()
    return time.time()


def _power_off_and_on(job: Job, turn: int) -> float:
    host, moment = job.host_of(1), _power_off(job, turn)
    time.sleep(_OFF_SECONDS)
    host.boot()
    return moment


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to its last byte. Returns the file that does so."""
    path = folder / "filler"
    block = 1 << 20
    with path.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(b"\0" * block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block //= 2
    return path


def _full_disk(job: Job, turn: int) -> float:
    """Fill the disk for a while in which saves fall due."""
    moment = time.time()
    deadline = moment + _FULL_SECONDS
    while time.time() < deadline:
        filler = fill(job.run.parent)  # again: what was removed meanwhile has made room
        time.sleep(0.5)
    filler.unlink()
    return moment


def _full_disk_at_the_end(job: Job, turn: int) -> float:
    """Fill the disk until the run could not be saved at its end."""
    moment, filler = time.time(), fill(job.run.parent)
    while not any(job.events_after(moment, "fault", "end")) and job.poll() is None:
        filler = fill(job.run.parent)
        time.sleep(0.5)
        if time.time() - moment > 60:  # events cannot be written either
            break
    filler.unlink()
    return moment


FAULTS: dict[str, Fault] = {
    "rank-killed": Fault("a rank is SIGKILLed", _rank(signal.SIGKILL), 2),
    "rank-stopped": Fault("a rank is SIGSTOPped", _rank(signal.SIGSTOP), 35),
    "rank-slow": Fault("a rank gets half of its time for 20 s", _slow_rank, None),
    "rank-term": Fault("SIGTERM to one rank", _rank(signal.SIGTERM), 5),
    "host-fewer": Fault(
        "a host is off for good; goes on with one",
        _power_off,
        15,
        options=("--min-nodes", "1"),
        fewer=True,
    ),
    "host-spare": Fault(
        "a host is off for good; a spare takes over",
        _power_off,
        15,
        options=("--nodes", "2", "--spares", "1"),
        nodes=(1, 2, 3),
    ),
    "host-back": Fault("a host is off for 15 s", _power_off_and_on, 15, outage=_OFF_SECONDS),
    "link-cut": Fault("the link is cut for 25 s", _cut_link, 15, outage=_LINK_SECONDS),
    "disk-full": Fault("the disk is full for 4 s", _full_disk, None, disk=True),
    "disk-full-end": Fault("the disk is full at the end", _full_disk_at_the_end, 60, disk=True),
    "launch-term": Fault(
        "SIGTERM to `addp launch`, then the same command", _stop_launch, 15, again=True
    ),
    "supervisor-term": Fault("SIGTERM to a supervisor", _supervisor(signal.SIGTERM), 15),
    "supervisor-killed": Fault("a supervisor is SIGKILLed", _supervisor(signal.SIGKILL), 15),
    "launcher-killed": Fault("`launch.py` is SIGKILLed", _kill_node_launcher, 15),
}
