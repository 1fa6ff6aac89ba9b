"""Run a command in a process group of its own, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.launch.backend import PlannedCommand
from model.processes import signal_at_end_of_parent

_GRACE_SECONDS = 60  # for ranks to save, once they were asked to stop
_LOOK_SECONDS = 0.5  # between two looks at the command
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Ended(NamedTuple):
    """How a command ended.

    code: its exit code; negative where a signal ended it.
    signalled: whether somebody asked us to stop before it ended. It may have come to its own end
    all the same.
    """

    code: int
    signalled: bool


@dataclass(frozen=True)
class Stopping:
    """How what a command starts is asked to stop.

    ask: asks it, instead of a signal to the group. It is given the command's process id, and
    returns whether it could.
    asked: says whether somebody asked us to stop before the command was started.
    enough: says whether we want it to stop by ourselves; it is asked again and again.
    grace: seconds for ranks to save, once they were asked to stop.
    """

    ask: Callable[[int], bool] = lambda pid: False
    asked: Callable[[], bool] = lambda: False
    enough: Callable[[], bool] = lambda: False
    grace: float = _GRACE_SECONDS


def run_group(
    command: PlannedCommand, stdout: int | None = None, stopping: Stopping | None = None
) -> Ended:
    """Run a command in a process group of its own, and take the whole group down with us.

    Launchers may leave their ranks behind when they are signalled themselves, as DeepSpeed's does.
    The group reaches those ranks too. It is asked to stop with the first signal that we get, and
    killed if it has not ended when the grace is over. If we are killed, the command is asked to
    stop by the kernel.

    stdout: a file descriptor in place of ours.
    """
    how = stopping or Stopping()
    group: list[int] = []
    signals: list[int] = []
    stopped_at: list[float] = []

    def stop(number: int) -> None:
        stopped_at.append(time.monotonic())
        for pid in group:
            if not how.ask(pid):
                # Other signals end launchers, whose ranks would run on.
                _signal_group(pid, number if number == signal.SIGINT else signal.SIGTERM)

    def forward(number: int, _: object) -> None:
        signals.append(number)
        stop(number)

    # Before the start: a signal in between would otherwise end us and leave the group behind.
    previous = catch_stops(forward)
    try:
        process = _start(command, stdout)
        group.append(process.pid)
        if signals or how.asked():
            forward(signal.SIGTERM, None)
        while True:
            try:
                return Ended(process.wait(timeout=_LOOK_SECONDS), bool(signals))
            except subprocess.TimeoutExpired:
                if not stopped_at and how.enough():
                    stop(signal.SIGTERM)
                if stopped_at and time.monotonic() - stopped_at[0] > how.grace:
                    _signal_group(process.pid, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for pid in group:
            _end_group(pid, how.grace)


def catch_stops(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have the signals that ask us to stop handled. Returns the handlers that they had.

    A terminal that goes away does not stop what `nohup` has started.
    """
    numbers = [n for n in _STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _start(command: PlannedCommand, stdout: int | None) -> subprocess.Popen[bytes]:
    """Start a command that gets SIGTERM where this process is killed and can ask it no more."""
    parent = os.getpid()

    def ask_when_we_are_gone() -> None:
        signal_at_end_of_parent(signal.SIGTERM)
        if os.getppid() != parent:  # we were gone before
            os.kill(os.getpid(), signal.SIGTERM)

    return subprocess.Popen(
        list(command.words),
        start_new_session=True,
        env={**os.environ, **command.environment},
        stdout=stdout,
        preexec_fn=ask_when_we_are_gone,
    )


def _signal_group(group: int, number: int) -> bool:
    """Signal all processes of a group. Returns whether there was still one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int, grace: float) -> None:
    """End the ranks that outlived their launcher: ask once, wait, and kill what is left."""
    deadline = time.monotonic() + grace
    number: int = signal.SIGTERM
    while _signal_group(group, number) and time.monotonic() < deadline:
        time.sleep(0.1)
        number = 0
    _signal_group(group, signal.SIGKILL)
