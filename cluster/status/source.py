"""Where the files of a run are read: its folder, or the store that it uploads to.

Only the ends of files are read, since metrics grow for weeks. A file that is missing is None, and
so is one that cannot be read, which is then among the `problems`.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from cluster.status.fields import one_line
from data_pipeline.storage import Entry, ObjectMissing, StorageError, Store, TooShort

_MOST_FILES = 100_000  # that are listed of one folder


class Piece(NamedTuple):
    """The end of a file. whole: whether that is all of it. modified: in seconds since 1970."""

    content: bytes
    whole: bool
    modified: float

    @property
    def lines(self) -> bytes:
        """Its whole lines, where it has lines: the first one may be cut."""
        return self.content if self.whole else self.content.partition(b"\n")[2]


class Source(Protocol):
    """The files of a run, by their names in the run folder.

    problems: why files that are there could not be read, in sentences.
    """

    problems: list[str]

    def end(self, name: str, most: int) -> Piece | None:
        """Return the last `most` bytes of a file."""

    def files(self, prefix: str) -> list[Entry]:
        """Return the files whose names begin with `prefix`, which names a folder up to its last
        slash. Folders below that one may be left out."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder."""


class FolderSource:
    """The files of a run folder. It opens regular files only, and waits for none."""

    def __init__(self, path: Path) -> None:
        self._path, self.problems = path, list[str]()

    def end(self, name: str, most: int) -> Piece | None:
        try:
            handle = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    self.problems.append(f"{name} is no regular file")
                    return None
                file.seek(max(0, status.st_size - most))
                content = file.read(most)
        except OSError as error:
            self._note(name, error)
            return None
        return Piece(content, status.st_size <= most, status.st_mtime)

    def files(self, prefix: str) -> list[Entry]:
        folder, _, beginning = prefix.rpartition("/")
        found = []
        try:
            with os.scandir(self._path / folder) as entries:
                for entry in islice(entries, _MOST_FILES):
                    if entry.name.startswith(beginning) and entry.is_file():
                        status = entry.stat()
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        found.append(Entry(name, status.st_size, status.st_mtime))
        except OSError as error:
            self._note(folder, error)
        return found

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._path / folder) as entries:
                return [entry.name for entry in islice(entries, _MOST_FILES) if entry.is_dir()]
        except OSError as error:
            self._note(folder, error)
            return []

    def _note(self, name: str, error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            what = one_line(f"{name} cannot be read: {error.strerror or error}")
            self.problems.append(what)


class StoreSource:
    """The files of a run on its store: those that came with the newest uploaded checkpoint."""

    def __init__(self, store: Store) -> None:
        self._store, self.problems = store, list[str]()

    def end(self, name: str, most: int) -> Piece | None:
        entry = next((e for e in self.files(name) if e.name == name), None)
        if entry is None:
            return None
        start = max(0, entry.size - most)
        try:
            content = self._store.read(name, start, entry.size - start)
        except TooShort as short:  # it was replaced meanwhile
            content = short.content
        except StorageError as error:
            self._note(error)
            return None
        return Piece(content, start == 0, entry.modified)

    def files(self, prefix: str) -> list[Entry]:
        try:
            return list(islice(self._store.list(prefix), _MOST_FILES))
        except StorageError as error:
            self._note(error)
            return []

    def folders(self, folder: str) -> list[str]:
        from data_pipeline.storage import open_store

        try:
            return open_store(f"{self._store.url}/{folder}").folders()
        except StorageError as error:
            self._note(error)
            return []

    def _note(self, error: StorageError) -> None:
        if not isinstance(error, ObjectMissing):
            self.problems.append(one_line(str(error)))
