"""The first process of a pod: it starts the supervisor, and tells Kubernetes how that ended.

    python -m cluster.launch.pod --run RUN -- COMMAND

A Job of Kubernetes knows of a pod's end only its exit code, and the supervisor's 75 says that the
run has saved and stopped: for a node that is drained as well as for a user who wants it to end. The
first is to be started again, and the second is not; so the second becomes a code of its own.

As the first process of a container it is also the parent of all whose parents have ended.
"""

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

from cluster.launch.stopped import user_stopped
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

EXIT_USER_STOPPED = 82


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, and return the exit code of the pod."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = words.index("--")  # the command may have one of its own
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    given = parser.parse_args(words[:at])
    started = time.time()
    code = _run(words[at + 1 :])
    if code == EXIT_PREEMPTED and user_stopped(RunFolder(given.run), started):
        print("a user has stopped the run", flush=True)
        return EXIT_USER_STOPPED
    return code


def _run(command: Sequence[str]) -> int:
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
    child.append(subprocess.Popen(list(command)).pid)
    for early in waiting:
        forward(early, None)
    while True:
        pid, status = os.wait()  # any child: also those that were left behind
        if pid == child[0]:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
