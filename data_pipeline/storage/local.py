"""A store on a local folder."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipeline.storage.base import (
    CHUNK,
    BucketMissing,
    Entry,
    NoRegularFile,
    ObjectMissing,
    StorageError,
    joined,
    local_error,
)
from data_pipeline.storage.folder_walk import FolderWalk, leads_out
from model.documents import show
from model.files import sync, write_atomically

SCRATCH = ".tmp"  # a folder below the root of a local store: files on their way to their names


class LocalStore:
    """A folder as a store. An object appears as a hard link to a synced temporary file; linking
    fails if the name is taken.

    Only regular files are opened. closed: links that lead out of the folder are followed neither
    for reading nor for writing; the folder itself may be a link.
    """

    def __init__(self, root: Path, closed: bool = False) -> None:
        self.root, self.closed = root, closed
        self.url = str(root)

    def folders(self) -> list[str]:
        if not self.root.is_dir():
            raise BucketMissing(f"there is no folder {self.root}; check the path")
        try:
            return sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name != SCRATCH)
        except OSError as error:
            raise local_error(error, f"{self.root}") from error

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        if not (self.root / folder).is_dir():
            if folder and self.root.is_dir():
                return
            raise BucketMissing(f"there is no folder {self.root}; check the path")
        yield from FolderWalk(self.root, self.closed, SCRATCH).entries(folder, prefix)

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading. Raises NoRegularFile, ObjectMissing, AccessDenied or another
        StorageError."""
        path = self.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a device may do something
                raise NoRegularFile(f"{path} is no regular file")
            if self.closed and leads_out(self.root, path):
                reason = (
                    f"is a link out of {self.root}, which is not followed; put the file itself "
                    "there"
                )
                raise NoRegularFile(f"{path} {reason}", reason)
            file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - Path.open takes no opener
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NoRegularFile(f"{path} is no regular file")
            return file
        except OSError as error:
            raise local_error(error, str(path)) from error
        except ValueError as error:  # a NUL, or a name that is no text
            raise ObjectMissing(f"{show(str(path))} is no name of a file") from error

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self.root / name
        with self.open(name) as file:
            try:
                left = max(0, os.fstat(file.fileno()).st_size - start)
                file.seek(start)
                content = file.read() if length is None else file.read(min(length, left))
            except OSError as error:
                raise local_error(error, str(path)) from error
        return joined([content], str(path), start, length)

    def _target(self, name: str) -> Path:
        """Return the path that an object is written to. Raises StorageError if it leads out of a
        closed folder."""
        target = self.root / name
        if self.closed and leads_out(self.root, target.parent):
            raise StorageError(
                f"{target.parent} leads out of {self.root} by a link; nothing is written there"
            )
        return target

    def create(self, name: str, content: bytes | Path) -> bool:
        target = self._target(name)
        if target.exists():
            return False
        scratch = self._target(f"{SCRATCH}/{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(scratch, content)
            try:
                os.link(scratch, target)
            except FileExistsError:
                return False
            finally:
                scratch.unlink(missing_ok=True)
            sync(target.parent)
        except FileNotFoundError:
            if target.exists():  # a finished job swept our temporary file away: the name was taken
                return False
            raise ObjectMissing(
                f"{target}: its folder went away while it was stored; run it again"
            ) from None
        except OSError as error:
            raise local_error(error, str(target)) from error
        return True

    def replace(self, name: str, content: bytes) -> None:
        try:
            write_atomically(self._target(name), content)
        except OSError as error:
            raise local_error(error, str(self.root / name)) from error

    def remove(self, name: str) -> None:
        try:
            self._target(name).unlink(missing_ok=True)
        except OSError as error:
            raise local_error(error, str(self.root / name)) from error

    def sweep(self) -> None:
        scratch = self.root / SCRATCH
        if scratch.is_dir() and not scratch.is_symlink():  # what it links to is not ours
            for path in scratch.iterdir():
                path.unlink(missing_ok=True)
            scratch.rmdir()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe that took the file's name would block without end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _write_synced(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    while piece := source.read(CHUNK):
                        file.write(piece)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
