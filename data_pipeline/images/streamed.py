"""Images in tars that cannot be read by range: each tar is streamed from its first byte to its
last, into a file without a name on the local disk, and read from there.

    plan   tar 0 -> file: list its images, drop it -> tar 1 -> ...
    job    for each shard: tar 0 -> file: keep the shard's images, drop the rest -> tar 1 -> ...
    run    as for one shard, with all images that it trains on
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from threading import Lock
from typing import BinaryIO, Literal

from data_pipeline.images.class_names import ClassNames
from data_pipeline.images.images import MOST_BYTES, ImageEntry
from data_pipeline.images.webdataset_shards import WebDatasetShards
from data_pipeline.storage import Entry, StorageError, Store, TooShort
from data_pipeline.storage.urls import ReadOnlyStore, UrlStore, temporary_file, written
from model.errors import DataError


def only_streams(store: Store) -> bool:
    """Whether the tars of a store cannot be read by range. Raises StorageError."""
    return isinstance(store, UrlStore) and not store.ranged


def gathered(store: Store, images: Iterable[ImageEntry]) -> Store:
    """Return a store that these images can be read from in any order: the same one, if it reads by
    range; else one that copies them at the first reading."""
    if isinstance(store, UrlStore) and only_streams(store):
        return _GatheredImages(store, images)
    return store


class StreamedShards:
    """WebDataset shards that cannot be read by range, listed one after another."""

    kind: Literal["webdataset"] = "webdataset"

    def __init__(self, store: UrlStore, names: ClassNames | None = None) -> None:
        self.store: Store = store
        self.streams, self._copies = store, _OneTar(store.url)
        self._shards = WebDatasetShards(self._copies, self._one_after_another(), names)

    @property
    def classes(self) -> ClassNames:
        return self._shards.classes

    def images(self) -> Iterator[ImageEntry]:
        """Yield the images, once. Raises what `WebDatasetShards` and streaming raise."""
        return self._shards.images()

    def _one_after_another(self) -> Iterator[Entry]:
        for name in self.streams.names:
            with closing(self.streams.copied(name)) as file:
                self._copies.file = file
                yield Entry(name, self.streams.sizes[name], 0.0)


class _OneTar(ReadOnlyStore):
    """The tar that was copied last."""

    file: BinaryIO

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return _read(self.file, start, length, f"{self.url}/{name}")


class _GatheredImages(ReadOnlyStore):
    """Copies of some images of a store. Threads may share it; the first one copies for all."""

    def __init__(self, store: UrlStore, images: Iterable[ImageEntry]) -> None:
        super().__init__(store.url)
        self._store, self._lock = store, Lock()
        self._file: BinaryIO | StorageError | None = None  # an error: it could not be made
        self._wanted: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for image in images:
            if image.offset is None:
                raise DataError(f"{store.url} has tars alone, and {image.id} lies in none")
            if image.size <= MOST_BYTES:  # a larger one is not read
                self._wanted[image.object].add((image.offset, image.size))
        self._at: dict[tuple[str, int], int] = {}  # byte of the copy, by tar and offset there

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self._lock:
            if self._file is None:
                try:
                    self._file = self._copied_images()
                except StorageError as error:
                    self._file = error
        if isinstance(self._file, StorageError):
            raise self._file
        return _read(self._file, self._at[name, start], length, f"{self.url}/{name}")

    def _copied_images(self) -> BinaryIO:
        copy, end = temporary_file(), 0
        for name in (name for name in self._store.names if name in self._wanted):
            with closing(self._store.copied(name)) as tar:
                for offset, size in sorted(self._wanted[name]):
                    written(copy, _read(tar, offset, size, f"{self.url}/{name}"))
                    self._at[name, offset] = end
                    end += size
        return copy


def _read(file: BinaryIO, start: int, length: int | None, what: str) -> bytes:
    """Read at a place of a file that threads share. Raises TooShort."""
    if length is None:
        length = max(0, os.fstat(file.fileno()).st_size - start)
    content = os.pread(file.fileno(), length, start)
    if len(content) != length:
        raise TooShort(f"{what} ends before byte {start + length}", content)
    return content
