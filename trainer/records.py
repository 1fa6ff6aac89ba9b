"""What a run writes down about itself, without ever ending by it. A record that cannot be written
(full or read-only disk, lost mount) is said on the console once, kept in memory, tried again with
each next record of this process, and said again once it is written. Imports no torch.

Checkpoints, networks and the completion marker are no records: what stands in for a run's work
fails by name.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

from model.files import write_atomically

_KEPT = 100_000  # pieces of one record that wait in memory; later ones are lost, and counted
_QUIET = 60.0  # seconds in which a record that comes and goes is not said again
_lock = threading.RLock()
_records: dict[Path, _Record] = {}


def say(line: str) -> None:
    """On the console; that too may be a file on a full disk, or a pipe that was closed."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def ago(moment: float) -> str:
    """A wall-clock time in words: its age, and when it was."""
    seconds = max(0, round(time.time() - moment))
    hours, minutes = divmod(seconds // 60, 60)
    age = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
    return f"{age} ago ({time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment))})"


def append(path: Path, content: bytes) -> None:
    """At the end of the file, after what waits to be written there."""
    with _lock:
        _of(path).pieces.append(content)
        _write_all()


def replace(path: Path, content: bytes) -> None:
    """Whole or not at all, in place of what is there and of what waits."""
    with _lock:
        record = _of(path)
        record.whole = content
        record.pieces.clear()
        _write_all()


def read(path: Path) -> bytes:
    """What the file holds, or will hold once what waits is written; nothing where there is no file.
    Raises OSError; also where more waits for a file that is not there, since its folder may only be
    lost for a while."""
    with _lock:
        record = _of(path)
        if record.whole is not None:
            content = record.whole
        else:
            content = path.read_bytes() if record.pieces or path.exists() else b""
        return content + b"".join(record.pieces)


def finish() -> None:
    """A last try. Says what is lost for good."""
    with _lock:
        _write_all()
        for path, record in _records.items():
            if record.waits:
                say(f"{path} could not be written to the end of this run, and is not complete")
        _records.clear()


def _of(path: Path) -> _Record:
    return _records.setdefault(path.absolute(), _Record(path.absolute()))


def _write_all() -> None:
    for record in _records.values():
        if record.waits:
            record.write()


class _Record:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole: bytes | None = None  # comes before the pieces
        self.pieces: deque[bytes] = deque()
        self._lost = 0
        self._fails, self._told = False, False
        self._said = -_QUIET

    @property
    def waits(self) -> bool:
        return self.whole is not None or bool(self.pieces)

    def write(self) -> None:
        try:
            if self.whole is not None:
                write_atomically(self.path, self.whole)
                self.whole = None
            if self.pieces:
                self._append()
        except OSError as error:
            self._failed(error)
            return
        if self._told:
            lost = f", but {self._lost} later ones are lost" if self._lost else ""
            say(f"{self.path} is written again; what waited in memory is in it{lost}")
            self._said = time.monotonic()
        self._told, self._lost = False, 0

    def _append(self) -> None:
        """A piece that was cut short goes on exactly where it was cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write of a short piece to a file opened so: the appends of several processes do not
        # mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while self.pieces:
                written = os.write(handle, self.pieces[0])
                if written < len(self.pieces[0]):
                    self.pieces[0] = self.pieces[0][written:]
                else:
                    self.pieces.popleft()
        finally:
            os.close(handle)

    def _failed(self, error: OSError) -> None:
        while len(self.pieces) > _KEPT:
            self.pieces.pop()
            self._lost += 1
        if self._told or time.monotonic() - self._said < _QUIET:
            return
        self._told, self._said = True, time.monotonic()
        say(
            f"{self.path} cannot be written: {error.strerror or error}. It is kept in memory and "
            "tried again with the next record, and the run goes on"
        )
