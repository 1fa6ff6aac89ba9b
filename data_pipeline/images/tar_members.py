"""Finds where the members of an uncompressed tar lie, by its headers alone: by seeks in a file, by
small ranges on S3.

Nothing that is wanted is passed over: a link inside the tar is read as what it points to, and what
cannot be read in place (a link out of the tar, a sparse file, a device) raises an error that names
it.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipeline.storage import Store
from model.documents import show
from model.errors import ADDPError, DataError

_READ_AHEAD = 16 * 1024  # a label and the next header often lie within it
_MOST_READ = 16 * 2**20  # headers and labels are small; a larger one is damaged or hostile
_LARGEST_PAX = 2**20
_LONGEST_NAME = 4096
_ENDLESS_NUMBER = re.compile(rb"[0-9]{1000}")
_BLOCK = 512


class PlainHeader(tarfile.TarInfo):
    """Looks at extended headers before they are parsed: tarfile takes a time that is quadratic in a
    run of digits."""

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        assert tar.fileobj is not None
        if self.size > _LARGEST_PAX:
            raise DataError(f"a header of {self.size:,} bytes is none that a tar needs")
        begin = tar.fileobj.tell()
        if _ENDLESS_NUMBER.search(tar.fileobj.read(self.size)):
            raise DataError("a header holds a number without end")
        tar.fileobj.seek(begin)
        return super()._proc_pax(tar)  # type: ignore[misc]


class Member(NamedTuple):
    """A member of a tar. offset, size: of its content in the stored object, in bytes."""

    name: str
    offset: int
    size: int


class ObjectReader(io.RawIOBase):
    """`size` bytes of a stored object, from `start` on, as a file that reads ahead a little."""

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
        """Read up to `count` bytes. Raises DataError for more than any header or label takes."""
        left = max(0, self._size - self._at)
        count = left if count < 0 else min(count, left)
        if count > _MOST_READ:
            raise DataError(
                f"{self._store.url}/{self._name} is damaged: at byte {self._at}, a header of "
                f"{count:,} bytes"
            )
        begin = self._at - self._buffer_at
        if not 0 <= begin <= begin + count <= len(self._buffer):
            length = min(left, max(count, _READ_AHEAD))
            self._buffer, self._buffer_at = (
                self._store.read(self._name, self._start + self._at, length),
                self._at,
            )
            begin = 0
        self._at += count
        return self._buffer[begin : begin + count]


def members(
    store: Store,
    name: str,
    size: int,
    start: int = 0,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[Member]:
    """Yield the wanted files of a tar, in order. The tar is `size` bytes of the object `name`, from
    `start` on.

    Raises DataError if the archive is damaged or cut, since a listing that ends early would
    silently lose images, and for a wanted member that cannot be read in place.
    """
    file = ObjectReader(store, name, size, start)
    where = f"{store.url}/{name}"
    files: dict[str, Member | str] | None = None
    for header in _headers(file, where):
        if len(header.name) > _LONGEST_NAME:
            raise DataError(
                f"{where} holds {show(header.name)}, a name of {len(header.name):,} characters; "
                "rename it"
            )
        if header.isdir() or not wanted(header.name):
            continue
        if header.islnk() or header.issym():
            if files is None:  # most tars have no links, and need no table of their members
                files = _files(ObjectReader(store, name, size, start), where, start)
            target = _followed(header.name, files)
            if target is None:
                raise DataError(
                    f"{where}: {header.name} is a link to {header.linkname}, which is no file in "
                    "this tar; pack it again with `tar --dereference --hard-dereference`"
                )
            yield target._replace(name=header.name)
        elif header.issparse():
            raise DataError(
                f"{where}: {header.name} is stored as a sparse file; pack it again without --sparse"
            )
        elif not header.isreg():
            raise DataError(
                f"{where}: {header.name} is a device, a pipe or of unknown type; pack it again "
                "without that"
            )
        else:
            yield Member(header.name, start + header.offset_data, header.size)


def _headers(file: ObjectReader, where: str) -> Iterator[tarfile.TarInfo]:
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=PlainHeader) as tar:
            for header in tar:
                vars(tar)["members"].clear()  # or a million records stay in memory
                if header.size < 0 or tar.offset <= end:
                    raise DataError(
                        f"{where} is damaged: {header.name!r} is said to have {header.size} bytes"
                    )
                end = tar.offset
                yield header
            end = tar.offset
    except DataError as error:
        raise DataError(f"{where}: {error}" if where not in str(error) else str(error)) from error
    except ADDPError:
        raise
    except Exception as error:  # besides tarfile's own errors, a hostile header may raise any
        reason = str(error).replace("unexpected end of data", "it ends early")
        raise DataError(
            f"{where} is no readable tar ({reason}); fetch it again, and uncompress it if need be"
        ) from error
    # tarfile takes a damaged header for the end of the archive; the real end is a block of zeros.
    file.seek(max(0, end - _BLOCK))
    tail = file.read(2 * _BLOCK)
    if bytes(_BLOCK) not in (tail[:_BLOCK], tail[_BLOCK:]):
        raise DataError(
            f"{where} is cut or damaged at byte {end} of {file.seek(0, io.SEEK_END)}; fetch it "
            "again"
        )


def _files(file: ObjectReader, where: str, start: int) -> dict[str, Member | str]:
    """Return members by their normalised names; for a link, the normalised name of its target."""
    files: dict[str, Member | str] = {}
    for header in _headers(file, where):
        name = posixpath.normpath(header.name)
        if header.islnk():
            files[name] = posixpath.normpath(header.linkname)
        elif header.issym():
            target = posixpath.join(posixpath.dirname(name), header.linkname)
            files[name] = posixpath.normpath(target)
        elif header.isreg() and not header.issparse():
            files[name] = Member(header.name, start + header.offset_data, header.size)
    return files


def _followed(name: str, files: dict[str, Member | str]) -> Member | None:
    """Return the file that a link ends at; None if it ends nowhere, or goes round."""
    passed: set[str] = set()
    target: Member | str | None = posixpath.normpath(name)
    while isinstance(target, str) and target not in passed:
        passed.add(target)
        target = files.get(target)
    return target if isinstance(target, Member) else None
