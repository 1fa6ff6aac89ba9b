"""The interface of a store, which is a local folder or `s3://bucket/prefix`, and its errors.

A name is a relative path with forward slashes. An object is whole or absent: `create` and `replace`
never show half of one, and `create` never overwrites, so of several writers racing for a name
exactly one wins.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from model.documents import MIB
from model.errors import ADDPError, DataError

CHUNK = 8 * MIB  # bytes read at a time from a large object
# Bytes of a document; `dataset.json` of a hundred thousand shards takes 23 MiB.
MOST_DOCUMENT = 64 * MIB


class StorageError(ADDPError):
    """Something stands between us and the stored bytes. The message names the object, what happened
    and what to do."""

    exit_code = 74


class ObjectMissing(StorageError):
    """There is no object of that name."""


class NoRegularFile(ObjectMissing):
    """The name is that of a folder, a pipe or a device, or of a link that leads out of a closed
    folder. reason: what the message says of it, without its name.
    """

    def __init__(self, message: str, reason: str = "is no regular file") -> None:
        super().__init__(message)
        self.reason = reason


class BucketMissing(StorageError):
    """There is no such bucket, or no such folder to list."""


class AccessDenied(StorageError):
    """Credentials are missing, wrong, expired or not enough, or a local file's mode forbids it."""


class Throttled(StorageError):
    """The server kept asking to slow down after all retries."""


class Unreachable(StorageError):
    """The server gave no answer after all retries: it refused, reset or timed out."""


class Truncated(StorageError):
    """Fewer bytes came than were asked for, although the object has them."""


class TooShort(Truncated):
    """The object itself ends before the bytes that were asked for. content: the bytes it has."""

    def __init__(self, message: str, content: bytes = b"") -> None:
        super().__init__(message)
        self.content = content


class SourceChanged(StorageError):
    """An object is another one than it was when it was listed."""


class NoRanges(StorageError):
    """A server sends whole objects only, where a part was asked for."""


class StreamFailed(StorageError):
    """The command or program that writes a stream failed, or cannot be started."""


class StorageFull(StorageError):
    """No space is left, or the file system is read-only."""


class Entry(NamedTuple):
    """An object in a listing. size: in bytes. modified: in seconds since 1970."""

    name: str
    size: int
    modified: float


def local_error(error: OSError, what: str) -> StorageError:
    """Return the named error for what the file system said. what: the path that it is about."""
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


def environment_number(name: str, default: str) -> float:
    """Read a positive number of the environment. Raises StorageError."""
    text = os.environ.get(name, default)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-3 <= number <= 1e6:
        raise StorageError(f"{name}={text} is no number above 0; write one, as {name}={default}")
    return number


class Store(Protocol):
    """A folder or a bucket with a prefix. Every method retries by itself, and raises one of the
    errors above.

    url: opens the same store again.
    """

    url: str

    def folders(self) -> list[str]:
        """Return the first components of the names that have more than one, sorted."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects whose names start with `prefix`, at any depth, in no particular
        order."""

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes start .. start+length-1, or all from `start` on if `length` is None.

        Raises TooShort where the object has fewer.
        """

    def create(self, name: str, content: bytes | Path) -> bool:
        """Store a new object; return False, with nothing changed, if the name is taken.

        True is certain. False is not: after a lost answer, the object that is in the way may be
        this very one.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Store an object, whatever was there."""

    def remove(self, name: str) -> None:
        """Remove an object; do nothing if there is none."""

    def sweep(self) -> None:
        """Remove what killed writers left behind. Call it only if nobody else writes."""


def is_remote(url: str | Path) -> bool:
    """Whether `url` is a url of S3, and no path. Raises StorageError for a url of another scheme,
    or one that is not whole."""
    text = str(url)
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
            "s3: with less than two slashes is no url; write s3://bucket/prefix for a store, and "
            "./s3:... for a folder of that name"
        )
    return False


def parse_s3(url: str) -> tuple[str, str]:
    """Split a url of S3 into (bucket, prefix of the keys: empty, or with a slash at its end).

    Every character stands for itself; only `s3://b/x` and `s3://b/x/` are the same store. Raises
    StorageError, whose message never repeats a credential.
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
    """Split an object's path or url into (its folder's, its last name). Raises StorageError for a
    url that is none."""
    folder, _, name = str(url).rstrip("/").rpartition("/")
    if is_remote(url):
        # A key may have an empty component; "s3:/" is what is left of the url of a bucket alone.
        return folder + "/" * (folder.endswith("/") and folder != "s3:/"), name
    return folder or ("/" if str(url).startswith("/") else "."), name


def file_name(url: str) -> str:
    """Return a file name for a url of S3; no two stores have the same."""
    return quote("/".join(parse_s3(url)).removesuffix("/"), safe="")


def joined(pieces: Iterable[bytes], what: str, start: int, length: int | None) -> bytes:
    """Join the bytes of a range of an object, which messages call `what`. Raises TooShort where
    they are fewer than `length`."""
    content = b"".join(pieces)
    if length is not None and len(content) != length:
        message = f"{what} ends at byte {start + len(content)}; {start + length} were expected"
        raise TooShort(message, content)
    return content


def read_document(store: Store, name: str) -> bytes:
    """Read a whole object of at most `MOST_DOCUMENT` bytes. Raises DataError if it is larger or no
    regular file, ObjectMissing if there is none, StorageError if it cannot be read."""
    try:
        store.read(name, 0, MOST_DOCUMENT + 1)
    except TooShort as short:
        return short.content
    except NoRegularFile as error:
        raise DataError(str(error)) from error
    raise DataError(
        f"{store.url}/{name} is larger than {MOST_DOCUMENT // MIB} MiB, the most that it may have"
    )
