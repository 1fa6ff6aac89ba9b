"""What every store speaks of: an entry of a listing, and what stands between us and stored bytes, by name."""

from __future__ import annotations

import errno
from typing import NamedTuple

from model.errors import ADDPError


class StorageError(ADDPError):
    """Something between us and the stored bytes. The message names the object, what happened and what to do."""

    exit_code = 74


class ObjectMissing(StorageError):
    """No object of that name."""


class NoRegularFile(ObjectMissing):
    """The name is that of a folder, a pipe or a device, or of a link that leads out of a closed folder. reason: what
    the message says of it, without its name."""

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
        return StorageFull(f"{what}: {reason}; nothing was stored under that name. Make room, then run it again")
    return StorageError(f"{what}: {reason}")
