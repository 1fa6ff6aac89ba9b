"""How a run is asked to stop: a signal, a STOP file, or a launcher that went away. Imports no
torch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from model.errors import ADDPError
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PAUSE = 1.0  # seconds between looks at the STOP file and the launcher


class Preempted(ADDPError):
    """The run was asked to stop, and has saved. It is to be started again."""

    exit_code = EXIT_PREEMPTED


class StopRequest:
    """Takes signals, so that they are noticed at the next step border and never in the middle of a
    save. It is made before anything slow.

    Rank 0 alone looks for the file, and the ranks agree on what one of them has noticed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.stop
        # Hosts of other ranks may still see a file that is gone.
        self._looks = os.environ.get("RANK", "0") == "0"
        self._reason: str | None = None
        self._launcher = _launcher_chain()
        self._looked = 0.0
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: object) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def reason(self) -> str | None:
        """Why this rank should stop; None where it should not. Cheap enough for every step."""
        now = time.monotonic()
        if self._reason is None and now - self._looked > _PAUSE:
            self._looked = now
            if self._looks and os.path.exists(self._file):  # noqa: PTH110 - False where it cannot be looked at
                self._reason = f"{self._file} exists"
            elif any(_parent(pid) != parent for pid, parent in self._launcher):
                self._reason = "the launcher went away"
        return self._reason


def _parent(pid: int) -> int | None:
    """The parent of a process; None where there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])


def _launcher_chain() -> list[tuple[int, int | None]]:
    """The processes from here up, as far as they belong to a launcher: (process, its parent).

    The deepspeed launcher is two processes. Where the outer one is killed, nobody signals the
    ranks, which would run on unseen; where the inner one is, `deepspeed` exits with 0.
    """
    chain: list[tuple[int, int | None]] = []
    pid = os.getpid()
    for _ in range(3):
        parent = _parent(pid)
        chain.append((pid, parent))
        try:
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            break
        if not any(
            word in command
            for word in (b"deepspeed.launcher.launch", b"torch.distributed", b"torchrun")
        ):
            break
        assert parent is not None
        pid = parent
    return chain if len(chain) > 1 else []
