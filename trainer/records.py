"""What a run writes down about itself; a run never ends because this fails.

Where a record cannot be written (a full or read-only disk, a lost mount), the console says so once.
The record stays in memory, and each later record of this process tries it again. Once it is
written, the console says that, too.

Checkpoints, networks and the mark that a run is complete are no records: they hold the work of the
run, and a failure to write them is an error. Imports no torch.
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
_QUIET = 60.0  # seconds in which the console says nothing new of a record that comes and goes
_lock = threading.RLock()
_records: dict[Path, _Record] = {}


def say(line: str) -> None:
    """Print a line on the console, which may itself be a file on a full disk, or a closed pipe."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def ago(moment: float) -> str:
    """Return a time in words: its age, and when it was. moment: seconds since 1970."""
    seconds = max(0, round(time.time() - moment))
    hours, minutes = divmod(seconds // 60, 60)
    age = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
    return f"{age} ago ({time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment))})"


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, after what waits to be written there."""
    with _lock:
        _of(path).pieces.append(content)
        _write_all()


def replace(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all, and what waits to be written there."""
    with _lock:
        record = _of(path)
        record.whole = content
        record.pieces.clear()
        _write_all()


def read(path: Path) -> bytes:
    """Return what a file holds, or will hold once what waits is written; b"" where there is none.

    Raises OSError, also where something waits for the end of a file that is not there: its folder
    may be lost only for a while.
    """
    with _lock:
        record = _of(path)
        if record.whole is not None:
            content = record.whole
        else:
            content = path.read_bytes() if record.pieces or path.exists() else b""
        return content + b"".join(record.pieces)


def finish() -> None:
    """Try a last time to write what waits, and say what is lost for good."""
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
    """A file, and what waits to be written to it: at first `whole`, if any, and then `pieces`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole: bytes | None = None
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
        """Write the pieces; one that was cut short goes on exactly where it was cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write of a short piece to a file that is open for appending: the lines of several
        # processes do not mix.
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
