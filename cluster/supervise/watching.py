"""What the coordinator knows of the run folder: a thread looks at it, since a shared folder may
hang for minutes, and then what was known last still holds. Imports no torch."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

from trainer.run_folder import RunFolder

_LOOK = 1.0  # seconds between two looks


class FolderWatch:
    """stop: whether RUN/STOP exists. newest: the newest committed checkpoint. done: whether the run
    is complete. stopped_by_file: whether the last attempt ended because of RUN/STOP. failure:
    whether RUN/failure.txt exists."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.stop = self.done = self.failure = self.stopped_by_file = False
        self.newest: int | None = None
        self._looked = 0.0  # when the last complete look began
        self._wanted = threading.Event()
        threading.Thread(target=self._look_again, daemon=True, name="run folder").start()

    async def fresh(self, seconds: float) -> bool:
        """Wait for a look that begins now. Returns whether it came within so many seconds."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            self._wanted.set()
            await asyncio.sleep(0.01)
            if self._looked >= begun:
                return True
        return False

    def _look_again(self) -> None:
        while True:
            begun = time.monotonic()
            with suppress(OSError):
                self._look()
            self._looked = begun
            self._wanted.wait(_LOOK)
            self._wanted.clear()

    def _look(self) -> None:
        """Raises OSError."""
        folder = self._folder
        self.stop, self.failure = folder.stop.exists(), folder.failure.exists()
        self.done = folder.is_done
        self.newest = folder.newest_checkpoint()
        end = folder.read_exit()
        self.stopped_by_file = end is not None and end.get("stop") == "file"
