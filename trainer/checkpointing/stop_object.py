"""A STOP on the store asks a run to save and stop, as RUN/STOP does. Who asks may see nothing of
the run but its store."""

from __future__ import annotations

import threading
from contextlib import suppress

from data_pipeline.storage import StorageError, Store, TooShort
from trainer import records
from trainer.resilience.stopping import StopCause, StopRequest
from trainer.run_folder import STOP

_PAUSE = 15.0  # seconds between looks
_PARTING = 5.0  # seconds that a store may take to remove the object: the run is about to end


class StopObject:
    """A thread of rank 0 that looks for the object. It is none of the uploader's, which may be busy
    with one checkpoint for many minutes. Training never waits for it.

    A store that does not answer is asked again; the uploader reports it.
    """

    def __init__(self, store: Store, stop: StopRequest) -> None:
        self._store, self._stop = store, stop
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="stop object").start()

    def _run(self) -> None:
        while not self._is_there():
            if self._closed.wait(_PAUSE):
                return
        self._stop.ask(StopCause("file", f"{self._store.url}/{STOP} exists"))

    def _is_there(self) -> bool:
        try:
            self._store.read(STOP, 0, 1)
        except TooShort:  # it is there, and empty
            return True
        except StorageError:
            return False
        return True

    def remove(self) -> None:
        """Remove the object, once the run has stopped: else the next start would stop at once. A
        store that does not answer within seconds is left, and that is said."""
        removed = threading.Event()

        def remove() -> None:
            with suppress(StorageError):
                self._store.remove(STOP)
                removed.set()

        thread = threading.Thread(target=remove, daemon=True, name="stop object")
        thread.start()
        thread.join(_PARTING)
        if not removed.is_set():
            records.say(
                f"{self._store.url} does not answer; if there is an object {STOP}, it will stop "
                "the next start at once, unless you remove it"
            )

    def close(self) -> None:
        """End the thread at its next look."""
        self._closed.set()
