"""A sign of life of each rank, for whoever watches the run, and the end of a rank that gives none.
Imports no torch."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import threading
import time
from contextlib import suppress

from trainer import records
from trainer.run_folder import EXIT_HANG, RunFolder

_PAUSE = 1.0  # seconds between writes within one section
# Seconds in which a rank that hangs may write down that it does: its storage may be why.
_LAST_WORDS = 5.0


class Heartbeat:
    """Writes RUN/heartbeats/rank-N.json: {"time", "section", "step", "host", "pid"}. A context.

    The main thread beats, so that a rank that hangs falls silent. After `hang` seconds of silence
    (0: never) the rank writes all its threads' stacks to standard error, an incident, and exits
    with 76. A rank that ends, however but by a kill, leaves section "exit" with its "code" and
    "reason".
    """

    def __init__(self, folder: RunFolder, rank: int, hang: float) -> None:
        self._folder, self._hang = folder, hang
        self._file = folder.heartbeat(rank)
        self.section, self.step = "setup", 0
        self._written, self._beaten = 0.0, time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Heartbeat:
        self.beat("setup", 0)
        if self._hang:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def began(self) -> bool:
        """Whether a sign of life was ever written."""
        return self._written > 0

    def beat(self, section: str, step: int) -> None:
        """Give a sign of life. section: setup, restore, data, step, save or end."""
        self._beaten = now = time.monotonic()
        if section == self.section and now - self._written < _PAUSE and self._written:
            self.step = step
            return
        self.section, self.step, self._written = section, step, now
        self._write({})

    def leave(self, code: int, reason: str) -> None:
        """Write the last word of a rank that began to beat. What it still closes is no hang."""
        self._ended.set()
        if self.began:
            self.section = "exit"
            self._write({"code": code, "reason": reason})

    def _write(self, more: dict[str, object]) -> None:
        record = {
            "time": time.time(),
            "section": self.section,
            "step": self.step,
            "host": platform.node(),
            "pid": os.getpid(),
            **more,
        }
        records.replace(self._file, json.dumps(record).encode())

    def _watch(self) -> None:
        while not self._ended.wait(min(self._hang / 10, 5.0)):
            silent = time.monotonic() - self._beaten
            if silent > self._hang:
                # In a thread, since a console or a folder that hangs would keep us from the end.
                writer = threading.Thread(
                    target=self._leave_word, args=(round(silent),), daemon=True
                )
                writer.start()
                writer.join(_LAST_WORDS)
                os._exit(EXIT_HANG)

    def _leave_word(self, seconds: int) -> None:
        records.say(f"error: no progress for {seconds} s in {self.section}; stacks follow")
        with suppress(OSError, ValueError):  # a console that is gone
            faulthandler.dump_traceback(all_threads=True)
        self._folder.incident(
            {"event": "hang", "section": self.section, "step": self.step, "seconds": seconds}
        )
        self.leave(EXIT_HANG, f"no progress for {seconds} s in {self.section}")
