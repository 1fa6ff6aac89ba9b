"""How a run is asked to stop: a signal, a STOP file, or a launcher that went away. Imports no
torch."""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

from model.errors import ADDPError
from model.processes import Launcher
from trainer.run_folder import EXIT_PREEMPTED, RunFolder, StopKind

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PAUSE = 1.0  # seconds between looks at the STOP file and the launcher
# Words in the command line of a launcher. The deepspeed launcher is two processes: where the outer
# one is killed, nobody signals the ranks; where the inner one is, `deepspeed` exits with 0. A
# supervisor watches its own launcher itself.
_SUPERVISOR = b"cluster.supervise"
_LAUNCHERS = (b"deepspeed.launcher.launch", b"torch.distributed", b"torchrun", _SUPERVISOR)
# What a user wants counts more than what a machine does.
_ORDER: tuple[StopKind, ...] = ("file", "signal", "launcher")


class StopCause(NamedTuple):
    """Why a rank is asked to stop. kind: `file` is a STOP in the run folder or on the store."""

    kind: StopKind
    reason: str


class Preempted(ADDPError):
    """The run was asked to stop, and has saved. It is to be started again. stop: how it was asked,
    where that is known."""

    exit_code = EXIT_PREEMPTED

    def __init__(self, message: str, stop: StopKind | None = None) -> None:
        super().__init__(message)
        self.stop = stop


class StopRequest:
    """Takes signals, so that they are noticed at the next step border and never in the middle of a
    save. It is made before anything slow.

    Rank 0 alone looks for the file, and the ranks agree on what one of them has noticed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.stop
        # Hosts of other ranks may still see a file that is gone.
        self._looks = os.environ.get("RANK", "0") == "0"
        self._cause: StopCause | None = None
        self._settled = False  # whether the file was looked for since there was a cause
        self._launcher = Launcher(_LAUNCHERS, last=_SUPERVISOR)
        self._looked = 0.0
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        self.ask(StopCause("signal", signal.Signals(number).name))

    def ask(self, cause: StopCause) -> None:
        """Ask the run to stop. The first cause counts. Any thread may call it."""
        self._cause = self._cause or cause

    def cause(self) -> StopCause | None:
        """Why this rank should stop; None where it should not. Cheap enough for every step."""
        now = time.monotonic()
        if self._cause is None and now - self._looked > _PAUSE:
            self._looked = now
            if self._file_exists():
                self.ask(StopCause("file", f"{self._file} exists"))
            elif self._launcher.is_gone:
                self.ask(StopCause("launcher", "the launcher went away"))
        elif self._cause is not None and not self._settled:
            # A supervisor that saw the file signals all ranks, and is often faster than we are.
            self._settled = True
            if self._cause.kind != "file" and self._file_exists():
                self._cause = StopCause("file", f"{self._file} exists")
        return self._cause

    def _file_exists(self) -> bool:
        return self._looks and os.path.exists(self._file)  # noqa: PTH110 - False where it cannot be looked at


def first_cause(causes: list[StopCause]) -> StopCause:
    """Return the cause that counts, of those that several ranks have noticed, in their order."""
    return min(causes, key=lambda cause: _ORDER.index(cause.kind))
