"""A command in the place of this process, which has something to say when it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence


def run_to_end(command: Sequence[str]) -> int:
    """Start the command, forward stops to it, and return its exit code as a shell would say it."""
    waiting: list[int] = []  # stops that came before the command was there
    child: list[int] = []

    def forward(number: int, _: object) -> None:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child[0], number)
        else:
            waiting.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    process = subprocess.Popen(list(command))  # it is waited for here: see below
    child.append(process.pid)
    for early in waiting:
        forward(early, None)
    while True:
        # Any child: the first process of a container gets those whose parents have ended.
        pid, status = os.wait()
        if pid == process.pid:
            process.returncode = code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
