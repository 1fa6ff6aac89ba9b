"""No thread of a run ends unseen. One that dies of an error that it does not handle is an incident,
and where the run cannot do without it, the run saves and ends. What the threads of an executor
raise stands in its futures, and who made those looks at them. Imports no torch."""

from __future__ import annotations

import os
import threading

from model.entry import leave_trace, unexpected
from model.errors import ADDPError
from trainer import records
from trainer.run_folder import RunFolder

# Without them no copy is uploaded, others take the store over, a hang lasts for ever, and whoever
# watches the run takes a rank for one that hangs.
NEEDED = ("upload", "claim", "watchdog", "heartbeat")


class ThreadWatch:
    """A context in which threads that die are told to this object, by `threading.excepthook`.

    lost: the error of the first one that the run cannot do without; None while there is none.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.lost: ADDPError | None = None

    def __enter__(self) -> ThreadWatch:
        self._before, threading.excepthook = threading.excepthook, self._died
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._before

    def _died(self, end: threading.ExceptHookArgs) -> None:
        name = end.thread.name if end.thread is not None else "without a name"
        error = end.exc_value or end.exc_type()
        rank = int(os.environ.get("RANK", 0))
        trace = leave_trace(error, self._folder.trace(rank))
        self._folder.incident(
            {
                "event": "thread died",
                "thread": name,
                "error": unexpected(error, None),
                "trace": str(trace or "on standard error"),
            }
        )
        reason = f"the thread {name} died: {unexpected(error, trace)}"
        records.say(f"{self._folder.path.name}: {reason}")
        if name in NEEDED:
            self.lost = self.lost or ADDPError(
                f"{reason}. The run cannot do without it; start it again to go on"
            )
