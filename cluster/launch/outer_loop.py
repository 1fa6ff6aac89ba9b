"""Start the supervisors of a run, and start them again until their verdict is final.

    the hosts that answer -> a backend's command -> the last verdict in RUN/supervision.jsonl
          ^                                             |
          +------- incomplete, or none at all ----------+------> done, stopped, failed, gave up

The supervisors heal what they can by themselves, and count failures in the run folder. What is left
for this loop is what takes a supervisor down with it: the first host, a launcher, a connection.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand
from cluster.launch.backends import BACKENDS
from cluster.launch.files import UnwritablePlan, written
from cluster.launch.hosts import Hosts
from cluster.launch.launch import RunFailed
from cluster.launch.newcomers import Newcomers
from cluster.launch.process_group import Ended, Stopping, catch_stops, run_group
from cluster.launch.process_tree import supervisors_below
from cluster.launch.ssh import unreachable
from cluster.supervise import history
from cluster.supervise.history import EXIT_GAVE_UP, EXIT_INCOMPLETE, FINAL, Start, Verdict
from cluster.supervise.policy import FINAL_CODES, Rules
from model.errors import ADDPError, DataError
from trainer.run_folder import EXIT_PREEMPTED, EXIT_STORAGE, RunFolder

_BACKOFF = (1.0, 10.0, 20.0, 40.0, 80.0, 120.0)  # seconds before a start that follows another
_LOOKS = (2.0, 4.0, 8.0, 15.0, 30.0)  # seconds before hosts are asked again
_USAGE = 2  # the exit code of a command line that is wrong
_STOPPED_HERE = "it was asked to stop here; the same command goes on"
# The supervisors kill ranks that have not saved in time, and end. Only then is it our turn.
_MARGIN = 15.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be seen through.

    backend: a name in BACKENDS.
    hosts: all that are listed, spares included.
    request: makes the request to start supervisors on some of these hosts.
    node: which of the plan's commands is ours, where each host has its own.
    asks_hosts: whether the hosts are reached over ssh, so that they can be asked before a start.
    port: the coordinator's, on the first host.
    """

    run: Path
    backend: str
    hosts: Hosts
    rules: Rules
    grace: float
    port: int
    request: Callable[[Hosts], LaunchRequest]
    node: int | None = None
    asks_hosts: bool = False


def see_through(job: Job, *, stdout: int | None = None) -> bool:
    """Start a run's supervisors until it is done, and leave no process behind.

    stdout: a file descriptor in place of ours, for what the run prints.

    Returns whether a signal came too late to stop the run. Raises RunFailed, with the supervisors'
    exit code, for any other end, and what the backend's `check` raises.
    """
    BACKENDS[job.backend].check(job.request(_worth_checking(job)))
    with _Signals() as signals:
        return _Loop(job, signals, stdout).run()


def _worth_checking(job: Job) -> Hosts:
    """Return the hosts that answer, if they are enough to begin with, else all: the check tells."""
    if not job.asks_hosts:
        return job.hosts
    silent = unreachable(job.hosts.names)
    there = [name for name in job.hosts.names if name not in silent]
    return job.hosts.among(there) if job.rules.most(len(there)) else job.hosts


class _Round(NamedTuple):
    """One start of the supervisors, and what came of it."""

    ended: Ended
    started: bool  # whether ranks were started
    verdict: Verdict | None


class _Loop:
    def __init__(self, job: Job, signals: _Signals, stdout: int | None) -> None:
        self._job = job
        self._signals = signals
        self._stdout = stdout
        self._folder = RunFolder(job.run)
        self._starts = 0  # since the last one that made ranks start
        self._silent = 0  # of these, those that could have worked: all hosts answered
        self._unreachable: dict[str, str] = {}  # hosts that did not answer, and why, as was said
        self._begun = False  # whether supervisors were started at all
        self._storage = 0  # failures of the run folder since a start that worked
        # In this start: whether we asked the run to stop by its file, and whether we did so for
        # hosts that are back.
        self._made_stop = self._made_room = False

    def run(self) -> bool:
        while True:
            hosts = self._answering()
            self._await_earlier(hosts)
            try:
                this = self._start(hosts)
            except (UnwritablePlan, DataError) as error:
                self._count_storage(error)
            else:
                self._storage = 0
                if self._is_over(this):
                    return this.ended.signalled
                self._count(this, hosts)
            self._wait(_BACKOFF, self._starts)
            self._starts += 1

    def _answering(self) -> Hosts:
        """Return the hosts to start on: those that answer, once there are enough of them."""
        job, looks = self._job, 0
        if not job.asks_hosts:
            return job.hosts
        while True:
            silent = unreachable(job.hosts.names)
            there = [name for name in job.hosts.names if name not in silent]
            for host, reason in silent.items():
                if self._unreachable.get(host) != reason:
                    _say(f"{host} does not answer: {reason}")
            self._unreachable = silent
            if job.rules.most(len(there)):
                return job.hosts.among(there)
            if not looks:
                _say(
                    f"{len(there)} of {len(job.hosts.names)} hosts answer, and the run needs "
                    f"{job.rules.fewest}: waiting"
                )
            self._wait(_LOOKS, looks)
            looks += 1

    def _await_earlier(self, hosts: Hosts) -> None:
        """Wait for the coordinator of an earlier start to end: it may still see to the last save.

        It is found by its port, where that can be reached from here.
        """
        if self._job.node:
            return  # it is on another host, and meant to be there
        deadline = time.monotonic() + self._job.grace + _MARGIN
        said = False
        while _listens(hosts.meeting_address, self._job.port) and time.monotonic() < deadline:
            if not said:
                _say("the coordinator of an earlier start still runs: waiting for its end")
                said = True
            self._wait((1.0,), 0)

    def _start(self, hosts: Hosts) -> _Round:
        job = self._job
        before = len(history.read(self._folder.supervision))
        plan = BACKENDS[job.backend].plan(job.request(hosts))
        newcomers = Newcomers(job.hosts, hosts, job.rules)
        self._made_stop = self._made_room = False

        def makes_room() -> bool:
            """Whether the run is to stop, so that it can be started with hosts that are back."""
            if back := newcomers.came():
                _say(f"{', '.join(back)} answers again: the run stops, and starts with more nodes")
                self._made_room = True
            return self._made_room

        stopping = Stopping(
            self._ask_to_stop, self._signals.came.is_set, makes_room, job.grace + _MARGIN
        )
        with written(plan.files):
            self._begun = True
            ended = run_group(own_command(plan, job.node), self._stdout, stopping)
        self._take_stop_back()
        events = history.read(self._folder.supervision)[before:]
        started = any(isinstance(event, Start) for event in events)
        return _Round(ended, started, history.last(events, Verdict))

    def _ask_to_stop(self, pid: int) -> bool:
        """Ask the supervisors below our command to stop, or all of them by a file.

        A launcher that is signalled itself gives its processes 30 s, or leaves them behind, or ends
        those of other launches on the same hosts. And where our command starts other hosts too, a
        supervisor that runs here, as below mpirun, is only one of several: the others would take
        its end for that of a node that goes away.
        """
        supervisors = [] if self._job.asks_hosts else supervisors_below(pid)
        for supervisor in supervisors:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(supervisor, signal.SIGTERM)
        if supervisors:
            return True
        try:
            self._folder.stop.parent.mkdir(parents=True, exist_ok=True)
            self._folder.stop.touch(exist_ok=False)
            self._made_stop = True
        except FileExistsError:  # a user has asked already, and means the end
            self._made_room = False
        except OSError as error:
            _say(
                f"{self._folder.stop} cannot be made ({error.strerror}); the launcher is signalled"
            )
            return False
        return True

    def _take_stop_back(self) -> None:
        """Remove the file by which we asked the run to stop: it would stop the next start."""
        if not self._made_stop:
            return
        try:
            self._folder.stop.unlink(missing_ok=True)
        except OSError as error:
            _say(f"{self._folder.stop} cannot be removed ({error.strerror}); remove it yourself")

    def _is_over(self, this: _Round) -> bool:
        """Return whether the run is done. Raises RunFailed for any other end that is final."""
        code, verdict = this.ended.code, this.verdict
        stopped_here = this.ended.signalled or self._signals.came.is_set()
        if self._made_room and not stopped_here and verdict and verdict.verdict == "stopped":
            return False
        if verdict is not None and verdict.verdict in FINAL:
            if verdict.verdict == "done":
                return True
            if verdict.verdict == "stopped" and stopped_here:  # the STOP was ours, and is gone
                raise self._failed(verdict.code, _STOPPED_HERE)
            where = f"; {self._folder.failure} says more" if verdict.code == EXIT_GAVE_UP else ""
            raise self._failed(verdict.code, f"{verdict.reason}{where}")
        if code in (*FINAL_CODES, _USAGE):
            what = "ended without a verdict" if this.started else "did not start"
            raise self._failed(code, f"the supervisors {what}; the reason stands above")
        if stopped_here:
            raise self._failed(EXIT_PREEMPTED, _STOPPED_HERE)
        return code == 0 and self._folder.is_done  # the first host's supervisor says so

    def _count(self, this: _Round, hosts: Hosts) -> None:
        """Remember whether this start came to something. Raises RunFailed where too many did not.

        Failures of ranks are not counted here: the supervisors do that, at each of their starts.
        """
        reason = this.verdict.reason if this.verdict else f"exit code {this.ended.code}"
        if this.started:
            self._starts = self._silent = 0
            if self._made_room:
                return
            _say(f"the supervisors ended ({reason}); they are started again")
            return
        if len(hosts.slots) == len(self._job.hosts.slots):
            self._silent += 1
        if self._silent >= self._job.rules.max_restarts:
            raise self._failed(
                EXIT_INCOMPLETE if this.verdict else EXIT_GAVE_UP,
                f"{self._silent} starts in a row started no rank (the last: {reason}); "
                "`addp doctor` looks for the cause",
            )
        _say(f"no rank was started ({reason}); another start follows")

    def _count_storage(self, error: ADDPError) -> None:
        """Remember that the run folder failed us: it gets as many chances as the supervisors give
        storage. Raises the error itself before the first start, when a user looks on, and RunFailed
        after the last chance."""
        self._storage += 1
        if not self._begun:
            raise error
        if self._storage >= self._job.rules.chances(EXIT_STORAGE):
            raise self._failed(EXIT_STORAGE, str(error)) from error
        _say(f"{error}; another start follows")

    def _wait(self, seconds: Sequence[float], times: int) -> None:
        """Wait for as long as it takes this many times. Raises RunFailed where we are to stop."""
        if self._signals.came.wait(seconds[min(times, len(seconds) - 1)]):
            raise self._failed(EXIT_PREEMPTED, "it was asked to stop before it was started again")

    def _failed(self, code: int, reason: str) -> RunFailed:
        error = RunFailed(f"training in {self._job.run} ended: {reason}")
        error.exit_code = code
        return error


class _Signals:
    """Notices signals while no command runs that they are for."""

    def __init__(self) -> None:
        self.came = threading.Event()

    def __enter__(self) -> _Signals:
        self._previous = catch_stops(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.came.set()


def own_command(plan: LaunchPlan, node: int | None) -> PlannedCommand:
    """Return the command of a plan that this process runs.

    node: the number of this host, where each host has a command of its own.
    """
    return plan.commands[0] if len(plan.commands) == 1 else plan.commands[node or 0]


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return True
    except OSError:
        return False


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"addp launch: {text}", file=sys.stderr, flush=True)
