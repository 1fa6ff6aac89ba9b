"""Where data sets and images lie: a local folder or `s3://bucket/prefix`, behind one small
interface.

A name is a relative path with forward slashes. An object is whole or absent: `create` and `replace`
never show a part of one, and `create` never overwrites, so of several writers racing for a name
exactly one wins.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from model.documents import MIB
from model.errors import ADDPError, DataError

CHUNK = 8 * 2**20
MOST_DOCUMENT = (
    64 * MIB
)  # bytes of a document: a data set of a hundred thousand shards takes 23 MiB


class StorageError(ADDPError):
    """Something between us and the stored bytes. The message names the object, what happened and
    what to do."""

    exit_code = 74


class ObjectMissing(StorageError):
    """No object of that name."""


class NoRegularFile(ObjectMissing):
    """The name is that of a folder, a pipe or a device, or of a link that leads out of a closed
    folder. reason: what the message says of it, without its name."""

    def __init__(self, message: str, reason: str = "is no regular file") -> None:
        super().__init__(message)
        self.reason = reason


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


def local_error(error: OSError, what: str) -> StorageError:
    reason = error.strerror or str(error)
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    if missing or error.errno == errno.ELOOP:
        return ObjectMissing(f"{what}: {reason}")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{what}: {reason}; check its owner and mode")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageFull(
            f"{what}: {reason}; nothing was stored under that name. Make room, then run it again"
        )
    return StorageError(f"{what}: {reason}")


class Store(Protocol):
    """Every method raises one of the errors above; retries are done inside."""

    url: str

    def folders(self) -> list[str]:
        """First components of the names that have more than one, sorted."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose names start with `prefix`, at any depth, in no particular order."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes start .. start+length-1, to the end when None. Never fewer than asked for: raises
        TooShort."""

    def create(self, name: str, content: bytes | Path) -> bool:
        """Store a new object; False, with nothing changed, where the name is taken.

        True is certain, False is not: after a lost answer the object that is in the way may be this
        very one.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Store an object, whatever was there."""

    def remove(self, name: str) -> None:
        """Remove an object; nothing where there is none."""

    def sweep(self) -> None:
        """Remove what killed writers left behind. Only where no one else writes."""


def is_remote(place: str | Path) -> bool:
    """Whether it is a url of S3, and no path. Raises StorageError for a url that is none of S3's,
    or not whole."""
    text = str(place)
    if text.startswith("s3://"):
        parse_s3(text)
        return True
    if "://" in text:
        scheme = text.partition("://")[0]
        raise StorageError(
            f"{scheme}://: this scheme is not known; use a local folder or s3://bucket/prefix"
        )
    if re.match(r"[sS]3:", text):
        raise StorageError(
            "s3: with less than two slashes is no place; write s3://bucket/prefix where a store is "
            "asked for, and ./s3:... for a folder of that name"
        )
    return False


def parse_s3(url: str) -> tuple[str, str]:
    """(bucket, prefix of the keys below: empty, or with a slash at its end).

    Every character stands for itself; only `s3://b/x` and `s3://b/x/` are one place. Raises
    StorageError, which never repeats a credential.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url} names no bucket; write s3://bucket/prefix")
    if ":" in bucket or "@" in bucket:  # the message must not show what may be a secret
        raise StorageError(
            "an s3:// url begins with its bucket, and takes no key and secret; write "
            "s3://bucket/prefix, and give credentials by AWS_PROFILE or the environment"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", bucket):
        raise StorageError(f"{url}: {bucket} is no name of a bucket; write s3://bucket/prefix")
    if {".", ".."} & set(prefix.split("/")):
        raise StorageError(f"{url}: S3 knows no folders . and ..; write the whole prefix")
    return bucket, prefix if not prefix or prefix.endswith("/") else prefix + "/"


def split_url(url: str | Path) -> tuple[str, str]:
    """(its folder's url, last name) of an object. Raises StorageError for a url that is none."""
    folder, _, name = str(url).rstrip("/").rpartition("/")
    if is_remote(url):
        return folder + "/" * (
            folder.endswith("/") and folder != "s3:/"
        ), name  # s3:/ of a bucket alone: no place
    return folder or ("/" if str(url).startswith("/") else "."), name


def file_name(url: str) -> str:
    """A name of a file for a url of S3: each place has one, and no other place has it."""
    return quote("/".join(parse_s3(url)).removesuffix("/"), safe="")


def read_document(store: Store, name: str) -> bytes:
    """A whole object, of at most `MOST_DOCUMENT` bytes. Raises DataError for a larger one and for
    what is no regular file; ObjectMissing; StorageError."""
    try:
        store.read(name, 0, MOST_DOCUMENT + 1)
    except TooShort as short:
        return short.content
    except NoRegularFile as error:
        raise DataError(str(error)) from error
    raise DataError(
        f"{store.url}/{name} is larger than {MOST_DOCUMENT // MIB} MiB, the most that it may have"
    )
