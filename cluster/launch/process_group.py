"""Run a command in a process group of its own, and leave nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import NamedTuple

from cluster.launch.backend import PlannedCommand

_GRACE_SECONDS = 60  # for ranks to save, once they were asked to stop
_LOOK_SECONDS = 0.5  # between two looks at the command
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Ended(NamedTuple):
    """How a command ended.

    code: its exit code; negative where a signal ended it.
    signalled: whether somebody asked us to stop before it ended. It may have come to its own end
    all the same.
    """

    code: int
    signalled: bool


def run_group(command: PlannedCommand, stdout: int | None = None) -> Ended:
    """Run a command in a process group of its own, and take the whole group down with us.

    Launchers may leave their ranks behind when they are signalled themselves, as DeepSpeed's does.
    The group reaches those ranks too. It is asked to stop with the first signal that we get, and
    killed if it has not ended 60 s later.

    stdout: a file descriptor in place of ours.
    """
    group: list[int] = []
    stopped_at: list[float] = []

    def forward(number: int, _: object) -> None:
        stopped_at.append(time.monotonic())
        for pid in group:
            # Launchers know no SIGUSR1: it would end them, and their ranks would run on.
            _signal_group(pid, signal.SIGTERM if number == signal.SIGUSR1 else number)

    # Before the start: a signal in between would otherwise end us and leave the group behind.
    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        process = subprocess.Popen(
            list(command.words),
            start_new_session=True,
            env={**os.environ, **command.environment},
            stdout=stdout,
        )
        group.append(process.pid)
        if stopped_at:
            _signal_group(process.pid, signal.SIGTERM)
        while True:
            try:
                return Ended(process.wait(timeout=_LOOK_SECONDS), bool(stopped_at))
            except subprocess.TimeoutExpired:
                if stopped_at and time.monotonic() - stopped_at[0] > _GRACE_SECONDS:
                    _signal_group(process.pid, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for pid in group:
            _end_group(pid)


def _signal_group(group: int, number: int) -> bool:
    """Signal all processes of a group. Returns whether there was still one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int) -> None:
    """End the ranks that outlived their launcher: ask once, wait, and kill what is left."""
    deadline = time.monotonic() + _GRACE_SECONDS
    number: int = signal.SIGTERM
    while _signal_group(group, number) and time.monotonic() < deadline:
        time.sleep(0.1)
        number = 0
    _signal_group(group, signal.SIGKILL)
