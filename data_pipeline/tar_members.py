"""Where the members of an uncompressed tar lie, by its headers alone: by seeks locally, by small ranges on S3."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.storage import Store
from model.errors import DataError

_READ_AHEAD = 16 * 1024  # a label and the next header often lie within it
_BLOCK = 512


class Member(NamedTuple):
    """offset, size: of the member's content, bytes."""

    name: str
    offset: int
    size: int


class ObjectReader(io.RawIOBase):
    """A window of a stored object as a file; reads ahead a little."""

    def __init__(self, store: Store, name: str, size: int, start: int = 0) -> None:
        self._store, self._name, self._start, self._size = store, name, start, size
        self._at = 0
        self._buffer, self._buffer_at = b"", 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if count < 0 else min(count, left)
        begin = self._at - self._buffer_at
        if not 0 <= begin <= begin + count <= len(self._buffer):
            length = min(left, max(count, _READ_AHEAD))
            self._buffer, self._buffer_at = self._store.read(self._name, self._start + self._at, length), self._at
            begin = 0
        self._at += count
        return self._buffer[begin : begin + count]


def members(store: Store, name: str, size: int, start: int = 0) -> Iterator[Member]:
    """The regular files of a tar in order; the tar is `size` bytes of the object `name` from `start` on.

    Raises DataError where the archive is damaged or cut: a listing that ends early would lose pictures in silence.
    """
    file = ObjectReader(store, name, size, start)
    where = f"{store.url}/{name}"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                vars(tar)["members"].clear()  # or a million records stay in memory
                if member.isreg():
                    yield Member(member.name, start + member.offset_data, member.size)
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{where} is no readable tar ({error}); fetch it again, and uncompress it if need be"
        ) from error
    # tarfile takes a damaged header for the end of the archive; the real end is a block of zeros.
    file.seek(max(0, end - _BLOCK))
    tail = file.read(2 * _BLOCK)
    if bytes(_BLOCK) not in (tail[:_BLOCK], tail[_BLOCK:]):
        raise DataError(f"{where} is cut or damaged at byte {start + end}; fetch it again")
