"""A rank that hangs says where it is when it is asked to, even where it never comes back from C.
Imports no torch."""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress

from trainer.run_folder import RunFolder


def answer_with_stacks(folder: RunFolder, rank: int) -> None:
    """From now on, at each SIGUSR2, add the stacks of all threads to RUN/stacks/rank-N.txt, or to
    standard error where that file cannot be made. Never SIGUSR1, which Slurm and NCCL use."""
    try:
        folder.stacks.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        # It stays open for as long as the process lives.
        faulthandler.register(signal.SIGUSR2, file=os.open(folder.stack(rank), flags, 0o666))
    except OSError:
        with suppress(OSError, RuntimeError, ValueError):  # a console that is gone
            faulthandler.register(signal.SIGUSR2)
