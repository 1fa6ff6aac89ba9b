"""Where data sets and pictures lie: a local folder or `s3://bucket/prefix`, behind one small interface.

A name is a relative path with forward slashes. An object is whole or absent: `create` and `replace` never show a part
of one, and `create` never overwrites, so of several writers racing for a name exactly one wins.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from model.errors import ADDPError
from model.files import sync as sync
from model.files import whole_file

CHUNK = 8 * 2**20
SCRATCH = ".tmp"  # below the root of a local store: files on their way to their names


class StorageError(ADDPError):
    """Something between us and the stored bytes. The message names the object, what happened and what to do."""

    exit_code = 74


class ObjectMissing(StorageError):
    """No object of that name."""


class NoRegularFile(ObjectMissing):
    """The name is that of a folder, a pipe or a device."""


class BucketMissing(StorageError):
    """No such bucket, or folder to list."""


class AccessDenied(StorageError):
    """Credentials are missing, wrong, expired or not enough, or a local file's mode forbids it."""


class Throttled(StorageError):
    """The server kept asking to slow down after all retries."""


class Unreachable(StorageError):
    """No answer after all retries: refused, reset or timed out."""


class Truncated(StorageError):
    """Fewer bytes than were asked for, although the object has them."""


class TooShort(Truncated):
    """The object itself ends before the bytes that were asked for. content: what it has of them."""

    def __init__(self, message: str, content: bytes = b"") -> None:
        super().__init__(message)
        self.content = content


class StorageFull(StorageError):
    """No space left, or a read-only file system."""


class Entry(NamedTuple):
    """size: bytes. modified: seconds since 1970."""

    name: str
    size: int
    modified: float


class Store(Protocol):
    """Every method raises one of the errors above; retries are done inside."""

    url: str

    def folders(self) -> list[str]:
        """First components of the names that have more than one, sorted."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose names start with `prefix`, at any depth, in no particular order."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes start .. start+length-1, to the end when None. Never fewer than asked for: raises TooShort."""

    def create(self, name: str, content: bytes | Path) -> bool:
        """Store a new object; False, with nothing changed, where the name is taken.

        True is certain, False is not: after a lost answer the object that is in the way may be this very one.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Store an object, whatever was there."""

    def remove(self, name: str) -> None:
        """Remove an object; nothing where there is none."""

    def sweep(self) -> None:
        """Remove what killed writers left behind. Only where no one else writes."""


def is_remote(place: str | Path) -> bool:
    """Whether it is a url of S3, and no path. Raises StorageError for a url that is none of S3's, or not whole."""
    text = str(place)
    if text.startswith("s3://"):
        parse_s3(text)
        return True
    if "://" in text:
        scheme = text.partition("://")[0]
        raise StorageError(f"{scheme}://: this scheme is not known; use a local folder or s3://bucket/prefix")
    if re.match(r"[sS]3:", text):
        raise StorageError(
            "s3: with less than two slashes is no place; write s3://bucket/prefix where a store is asked for, and "
            "./s3:... for a folder of that name"
        )
    return False


def parse_s3(url: str) -> tuple[str, str]:
    """(bucket, prefix of the keys below: empty, or with a slash at its end).

    Every character stands for itself; only `s3://b/x` and `s3://b/x/` are one place. Raises StorageError, which never
    repeats a credential.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url} names no bucket; write s3://bucket/prefix")
    if ":" in bucket or "@" in bucket:  # the message must not show what may be a secret
        raise StorageError(
            "an s3:// url begins with its bucket, and takes no key and secret; write s3://bucket/prefix, and give "
            "credentials by AWS_PROFILE or the environment"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", bucket):
        raise StorageError(f"{url}: {bucket} is no name of a bucket; write s3://bucket/prefix")
    if {".", ".."} & set(prefix.split("/")):
        raise StorageError(f"{url}: S3 knows no folders . and ..; write the whole prefix")
    return bucket, prefix if not prefix or prefix.endswith("/") else prefix + "/"


def open_store(url: str | Path) -> Store:
    """A local folder (need not exist yet) or `s3://bucket/prefix`."""
    if is_remote(url):
        from data_pipeline.s3 import S3Store

        return S3Store(str(url))
    return LocalStore(Path(url))


def split_url(url: str | Path) -> tuple[str, str]:
    """(its folder's url, last name) of an object. Raises StorageError for a url that is none."""
    folder, _, name = str(url).rstrip("/").rpartition("/")
    if is_remote(url):
        return folder + "/" * (folder.endswith("/") and folder != "s3:/"), name  # s3:/ of a bucket alone: no place
    return folder or ("/" if str(url).startswith("/") else "."), name


def file_name(url: str) -> str:
    """A name of a file for a url of S3: each place has one, and no other place has it."""
    return quote("/".join(parse_s3(url)).removesuffix("/"), safe="")


class LocalStore:
    """A folder. Objects appear by a link from a synced temporary file, which fails where the name is taken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def folders(self) -> list[str]:
        if not self.root.is_dir():
            raise BucketMissing(f"there is no folder {self.root}; check the path")
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name != SCRATCH)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]
        if not (self.root / folder).is_dir():
            if folder and self.root.is_dir():
                return
            raise BucketMissing(f"there is no folder {self.root}; check the path")
        yield from self._walk(folder, prefix, ())

    def _walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        """above: folders that this one lies in (device, inode): a link back to one of them holds nothing new."""
        try:
            status = (self.root / folder).stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            with os.scandir(self.root / folder) as found:
                entries = list(found)
        except OSError as error:
            raise _local_error(error, f"{self.root / folder}") from error
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not name.startswith(prefix):  # jobs ask for one of thousands of parts, again and again
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise _local_error(error, f"{self.root / name}") from error
                yield Entry(name, 0, 0.0)  # a link to nothing, or removed meanwhile: reading it will say so
                continue
            if stat.S_ISDIR(status.st_mode):
                if name != SCRATCH:
                    yield from self._walk(name, prefix, (*above, here))
            elif stat.S_ISREG(status.st_mode):
                yield Entry(name, status.st_size, status.st_mtime)
            else:
                yield Entry(name, 0, status.st_mtime)  # a pipe or a device, which reading refuses

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for ever
                raise NoRegularFile(f"{path} is no regular file")
            with path.open("rb") as file:
                file.seek(start)
                content = file.read() if length is None else file.read(length)
        except OSError as error:
            raise _local_error(error, str(path)) from error
        if length is not None and len(content) != length:
            raise TooShort(f"{path} ends at byte {start + len(content)}; {start + length} were expected", content)
        return content

    def create(self, name: str, content: bytes | Path) -> bool:
        target = self.root / name
        if target.exists():
            return False
        scratch = self.root / SCRATCH / uuid.uuid4().hex
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
            if target.exists():  # a finished job swept our temporary file away: the name was taken before
                return False
            raise ObjectMissing(f"{target}: its folder went away while it was stored; run it again") from None
        except OSError as error:
            raise _local_error(error, str(target)) from error
        return True

    def replace(self, name: str, content: bytes) -> None:
        try:
            write_atomically(self.root / name, content)
        except OSError as error:
            raise _local_error(error, str(self.root / name)) from error

    def remove(self, name: str) -> None:
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise _local_error(error, str(self.root / name)) from error

    def sweep(self) -> None:
        scratch = self.root / SCRATCH
        if scratch.is_dir():
            for path in scratch.iterdir():
                path.unlink(missing_ok=True)
            scratch.rmdir()


def write_atomically(path: Path, content: bytes) -> None:
    """Whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def _write_synced(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    while part := source.read(CHUNK):
                        file.write(part)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _local_error(error: OSError, what: str) -> StorageError:
    reason = error.strerror or str(error)
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if missing or error.errno == errno.ELOOP:
        return ObjectMissing(f"{what}: {reason}")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{what}: {reason}; check its owner and mode")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageFull(f"{what}: {reason}; nothing was stored under that name. Make room, then run it again")
    return StorageError(f"{what}: {reason}")
