"""The newest checkpoint on the store of a run, asked for beside everything else: a store may take
minutes to say that it does not answer."""

from __future__ import annotations

import threading
import time

from cluster.status.fields import one_line
from cluster.status.files import newest_checkpoint
from cluster.status.snapshot import Checkpoint
from cluster.status.source import StoreSource
from data_pipeline.storage import StorageError, open_store

_PAUSE = 30.0  # seconds between two questions


class CopyWatch:
    """Asks a store for its newest checkpoint, in a thread that ends with the process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.newest: Checkpoint | None = None
        self.problem: str | None = f"{one_line(url)} has not answered yet"
        self._asked = -_PAUSE
        self._thread: threading.Thread | None = None

    def ask(self, wait: float) -> None:
        """Ask again where it is time to, and wait so many seconds for the answer."""
        asking = self._thread is not None and self._thread.is_alive()
        if not asking and time.monotonic() - self._asked >= _PAUSE:
            self._asked = time.monotonic()
            self._thread = threading.Thread(target=self._look, daemon=True, name="store")
            self._thread.start()
        if wait > 0 and self._thread is not None:
            self._thread.join(wait)

    def _look(self) -> None:
        try:
            source = StoreSource(open_store(self.url))
            newest = newest_checkpoint(source, time.time())
            problem = source.problems[0] if source.problems else None
        except StorageError as error:
            newest, problem = self.newest, one_line(str(error))
        self.newest, self.problem = newest or self.newest, problem
