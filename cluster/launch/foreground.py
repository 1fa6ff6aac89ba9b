"""A command in the place of this process, which has something to say when it has ended."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.run_folder import RunFolder


class Ended(NamedTuple):
    """How a command of a run ended. started: when it began, in seconds since 1970."""

    folder: RunFolder
    started: float
    code: int


def run_given(description: str | None, arguments: Sequence[str] | None) -> Ended:
    """Run what a command line `--run RUN -- COMMAND` names to its end.

    arguments: the words after the program; None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = words.index("--")  # the command may have one of its own
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", type=Path, required=True)
    folder = RunFolder(parser.parse_args(words[:at]).run)
    started = time.time()
    return Ended(folder, started, run_to_end(words[at + 1 :]))


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
