"""The files of an annotated data set by their names, in a folder, in tars, or on S3.

A tar stands for the files in it, also where it lies in a folder beside others: `train2017.tar` next
to `annotations/instances_train2017.json` is as good as the folder `train2017/`. Its members are
read in place.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.images.location import locate, tars_in
from data_pipeline.images.streamed import only_streams
from data_pipeline.images.tar_members import members
from data_pipeline.storage import CHUNK, Entry, Store, TooShort
from model.errors import DataError


class StoredFile(NamedTuple):
    """A file of a data set. Its bytes are `size` bytes of the object `object` in a store, from
    `offset` on; if `offset` is None, the object holds nothing else."""

    id: str
    object: str
    size: int
    offset: int | None = None


class DataFiles:
    """All files of a data set, found by one listing.

    store: holds them. by_name: the files, by their names in the data set. url: for messages.
    """

    def __init__(self, url: str | Path) -> None:
        """Raises DataError for no source or two files of one name, StorageError where it cannot be
        reached."""
        self.url = str(url)
        location = locate(url)
        self.store = location.store
        if only_streams(self.store):
            raise DataError(
                f"{url} cannot be read by range, as annotated images must be; copy it into a folder"
            )
        self.by_name: dict[str, StoredFile] = {}
        for entry in tars_in(location) if location.tars else self.store.list():
            for file in _files(self.store, entry):
                name = posixpath.normpath(file.id)
                if name in self.by_name:
                    raise DataError(
                        f"{url} has two files {name}, in {self.by_name[name].object} and "
                        f"{file.object}; remove one"
                    )
                self.by_name[name] = file._replace(id=name)

    def root_of(self, folder: str) -> str:
        """Return what stands before `folder/` in the names: "" or "some/folder/". Raises DataError
        if no file or files below several such folders are there."""
        marked = f"/{folder}/"
        roots = {f"/{name}".partition(marked)[0] for name in self.by_name if marked in f"/{name}"}
        if len(roots) != 1:
            has = f"several folders {folder}" if roots else f"no folder {folder}"
            raise DataError(
                f"{self.url} has {has}; docs/annotations.md shows what annotated data look like"
            )
        root = roots.pop()[1:]
        return f"{root}/" if root else ""


def read_in_chunks(store: Store, file: StoredFile) -> Iterator[bytes]:
    """Yield the bytes of a file, some MiB at a time. Raises StorageError."""
    begin = file.offset or 0
    for start in range(0, file.size, CHUNK):
        yield store.read(file.object, begin + start, min(CHUNK, file.size - start))


def read_whole(store: Store, file: StoredFile, limit: int) -> bytes:
    """Read a small file. Raises DataError if it has more than `limit` bytes or is cut, and
    StorageError."""
    if file.size > limit:
        raise DataError(
            f"{store.url}/{file.id} has {file.size:,} bytes; at most {limit:,} are expected"
        )
    try:
        return store.read(file.object, file.offset or 0, file.size)
    except TooShort as error:
        raise DataError(f"{store.url}/{file.id} has changed since it was listed") from error


def _files(store: Store, entry: Entry) -> Iterator[StoredFile]:
    if not entry.name.endswith(".tar"):
        yield StoredFile(entry.name, entry.name, entry.size)
        return
    for member in members(store, entry.name, entry.size):
        yield StoredFile(member.name, entry.name, member.size, member.offset)
