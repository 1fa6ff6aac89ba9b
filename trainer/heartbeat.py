"""A sign of life of each rank for whoever watches a run, and the end of a rank that gives none. Imports no torch."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import sys
import threading
import time

from data_pipeline.storage import StorageError, write_atomically
from trainer.run_folder import EXIT_HANG, RunFolder

_PAUSE = 1.0  # seconds between writes within one section


class Heartbeat:
    """RUN/heartbeats/rank-N.json: {"time", "section", "step", "host", "pid"}; use as a context.

    The main thread beats, so that a rank that hangs falls silent. After `hang` seconds of silence (0: never) the rank
    writes all its threads' stacks to standard error, an incident, and exits with 76.
    """

    def __init__(self, folder: RunFolder, rank: int, hang: float) -> None:
        self._folder, self._hang = folder, hang
        self._file = folder.heartbeats / f"rank-{rank:05d}.json"
        self._section, self._step = "setup", 0
        self._written, self._beaten = 0.0, time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Heartbeat:
        self.beat("setup", 0)
        if self._hang:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def beat(self, section: str, step: int) -> None:
        """section: setup, restore, data, step, save or end."""
        self._beaten = now = time.monotonic()
        if section == self._section and now - self._written < _PAUSE and self._written:
            self._step = step
            return
        self._section, self._step, self._written = section, step, now
        record = {"time": time.time(), "section": section, "step": step, "host": platform.node(), "pid": os.getpid()}
        try:
            write_atomically(self._file, json.dumps(record).encode())
        except (OSError, StorageError):  # a sign of life is not worth a run
            return

    def _watch(self) -> None:
        while not self._ended.wait(min(self._hang / 10, 5.0)):
            silent = time.monotonic() - self._beaten
            if silent > self._hang:
                print(f"error: no progress for {silent:.0f} s in {self._section}; stacks follow", file=sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
                self._folder.incident(
                    {"event": "hang", "section": self._section, "step": self._step, "seconds": round(silent)}
                )
                os._exit(EXIT_HANG)
