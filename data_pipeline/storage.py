"""Where data sets and pictures lie: a local folder or `s3://bucket/prefix`, behind one small interface.

A name is a relative path with forward slashes. An object is whole or absent: `create` and `replace` never show a part
of one, and `create` never overwrites, so of several writers racing for a name exactly one wins.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote

from data_pipeline.folder_walk import FolderWalk, leads_out
from data_pipeline.stored import AccessDenied as AccessDenied
from data_pipeline.stored import BucketMissing as BucketMissing
from data_pipeline.stored import Entry as Entry
from data_pipeline.stored import NoRegularFile as NoRegularFile
from data_pipeline.stored import ObjectMissing as ObjectMissing
from data_pipeline.stored import StorageError as StorageError
from data_pipeline.stored import StorageFull as StorageFull
from data_pipeline.stored import Throttled as Throttled
from data_pipeline.stored import TooShort as TooShort
from data_pipeline.stored import Truncated as Truncated
from data_pipeline.stored import Unreachable as Unreachable
from data_pipeline.stored import local_error
from model.documents import MIB, show
from model.errors import DataError
from model.files import sync as sync
from model.files import whole_file

CHUNK = 8 * 2**20
SCRATCH = ".tmp"  # below the root of a local store: files on their way to their names


MOST_DOCUMENT = 64 * MIB  # bytes of a document: a data set of a hundred thousand shards takes 23 MiB


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


def open_store(url: str | Path, *, closed: bool = False) -> Store:
    """A local folder (need not exist yet) or `s3://bucket/prefix`. closed: see `LocalStore`."""
    if is_remote(url):
        from data_pipeline.s3 import S3Store

        return S3Store(str(url))
    return LocalStore(Path(url), closed)


def read_document(store: Store, name: str) -> bytes:
    """A whole object, of at most `MOST_DOCUMENT` bytes. Raises DataError for a larger one and for what is no regular
    file; ObjectMissing; StorageError."""
    try:
        store.read(name, 0, MOST_DOCUMENT + 1)
    except TooShort as short:
        return short.content
    except NoRegularFile as error:
        raise DataError(str(error)) from error
    raise DataError(f"{store.url}/{name} is larger than {MOST_DOCUMENT // MIB} MiB, the most that it may have")


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
    """A folder. Objects appear by a link from a synced temporary file, which fails where the name is taken.

    Only regular files are opened. closed: no link in the folder leads out of it, neither for reading nor for writing;
    the folder itself may be a link.
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
        """Raises NoRegularFile, ObjectMissing, AccessDenied and StorageError."""
        path = self.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # to open a device may do something
                raise NoRegularFile(f"{path} is no regular file")
            if self.closed and leads_out(self.root, path):
                reason = f"is a link out of {self.root}, which is not followed; put the file itself there"
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
        if length is not None and len(content) != length:
            raise TooShort(f"{path} ends at byte {start + len(content)}; {start + length} were expected", content)
        return content

    def _target(self, name: str) -> Path:
        """Where an object is written to. Raises StorageError where that is out of a closed folder."""
        target = self.root / name
        if self.closed and leads_out(self.root, target.parent):
            raise StorageError(f"{target.parent} leads out of {self.root} by a link; nothing is written there")
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
            if target.exists():  # a finished job swept our temporary file away: the name was taken before
                return False
            raise ObjectMissing(f"{target}: its folder went away while it was stored; run it again") from None
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
    """A pipe that took a file's place would be waited for without end."""
    return os.open(path, flags | os.O_NONBLOCK)


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
