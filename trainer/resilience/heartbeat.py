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
from pathlib import Path
from typing import NamedTuple

from model.files import write_atomically
from trainer import records
from trainer.run_folder import EXIT_HANG, NEAR_HEARTBEATS, RunFolder

_PAUSE = 1.0  # seconds between writes
# Seconds in which a rank that hangs may write down that it does: its storage may be why.
_LAST_WORDS = 5.0


class _Beat(NamedTuple):
    """What the main thread did last, and when: by the clock on the wall, and by one that never goes
    back."""

    section: str
    step: int
    time: float
    moment: float


class Heartbeat:
    """Writes RUN/heartbeats/rank-N.json: {"time", "section", "step", "host", "pid"}. A context.

    The main thread beats, which only sets a variable. A thread writes the beat down, at most once a
    second, so that training never waits for the storage of its heartbeats. The time is that of the
    main thread's beat: a rank that hangs falls silent, although its other threads live.

    A supervisor names a folder in the memory of this machine by ADDP_HEARTBEATS. The same file is
    written there by a thread of its own, so that no full or lost disk makes a rank look silent.

    After `hang` seconds of silence (0: never) the rank writes all its threads' stacks to standard
    error, an incident, and exits with 76. A rank that ends, however but by a kill, leaves section
    "exit" with its "code" and "reason".
    """

    def __init__(self, folder: RunFolder, rank: int, hang: float) -> None:
        self._folder, self._hang = folder, hang
        self._beat = _Beat("setup", 0, time.time(), time.monotonic())
        file = folder.heartbeat(rank)
        self._files = [_File(file)]
        if near := os.environ.get(NEAR_HEARTBEATS):
            self._files.insert(0, _File(Path(near) / file.name))
        self._ended = threading.Event()
        self.began = False  # whether this rank gives signs of life

    def __enter__(self) -> Heartbeat:
        self.beat("setup", 0)
        self.began = True
        for file in self._files:
            threading.Thread(
                target=self._write_beats, args=(file,), daemon=True, name="heartbeat"
            ).start()
        if self._hang:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def section(self) -> str:
        """The section that the main thread named last."""
        return self._beat.section

    @property
    def step(self) -> int:
        """The step that the main thread named last."""
        return self._beat.step

    def beat(self, section: str, step: int) -> None:
        """Give a sign of life. section: setup, restore, data, step, save or end."""
        self._beat = _Beat(section, step, time.time(), time.monotonic())

    def leave(self, code: int, reason: str) -> None:
        """Write the last word of a rank that began to beat. What it still closes is no hang."""
        self._ended.set()
        if not self.began:
            return
        last = self._beat = _Beat("exit", self.step, time.time(), time.monotonic())
        for file in self._files:
            file.finish(last, {"code": code, "reason": reason})

    def _write_beats(self, file: _File) -> None:
        written: _Beat | None = None
        while True:
            beat = self._beat
            if beat is not written:
                written = beat if file.write(beat) else None
            if self._ended.wait(_PAUSE):
                return

    def _watch(self) -> None:
        while not self._ended.wait(min(self._hang / 10, 5.0)):
            silent = time.monotonic() - self._beat.moment
            if silent > self._hang:
                # In a thread, since a console or a folder that hangs would keep us from the end.
                writer = threading.Thread(
                    target=self._leave_word, args=(round(silent),), daemon=True
                )
                writer.start()
                writer.join(_LAST_WORDS)
                os._exit(EXIT_HANG)

    def _leave_word(self, seconds: int) -> None:
        section, step = self.section, self.step
        records.say(f"error: no progress for {seconds} s in {section}; stacks follow")
        with suppress(OSError, ValueError):  # a console that is gone
            faulthandler.dump_traceback(all_threads=True)
        self._folder.incident(
            {"event": "hang", "section": section, "step": step, "seconds": seconds}
        )
        self.leave(EXIT_HANG, f"no progress for {seconds} s in {section}")


class _File:
    """A file that holds the last beat, and in the end the last word."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()  # held while it is written
        self._finished = False
        self._fails = False  # whether it could not be written the last time

    def write(self, beat: _Beat) -> bool:
        """Write a beat, unless the last word is written. Returns False where that fails, which is
        said once."""
        with self._writing:
            return self._finished or self._replace(beat, {})

    def finish(self, beat: _Beat, more: dict[str, object]) -> None:
        """Write the last word. Where a beat is held up by its storage, the last word would be, too,
        and is given up."""
        written = False
        if self._writing.acquire(timeout=_LAST_WORDS):
            try:
                self._finished = True
                written = self._replace(beat, more)
            finally:
                self._writing.release()
        if not written:
            records.say(f"{self._path} lacks the end of this run, and is not complete")

    def _replace(self, beat: _Beat, more: dict[str, object]) -> bool:
        """It need not survive a power cut, which would end the rank as well."""
        record = {
            "time": beat.time,
            "section": beat.section,
            "step": beat.step,
            "host": platform.node(),
            "pid": os.getpid(),
            **more,
        }
        try:
            write_atomically(self._path, json.dumps(record).encode(), durable=False)
        except OSError as error:
            if not self._fails:
                records.say(
                    f"{self._path} cannot be written: {error.strerror or error}. It is tried again "
                    "every second, and the run goes on"
                )
            self._fails = True
            return False
        if self._fails:
            records.say(f"{self._path} is written again")
        self._fails = False
        return True
