"""Where data sets and images lie: `open_store` gives a folder and a bucket one interface."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.storage.base import (
    CHUNK,
    MOST_DOCUMENT,
    AccessDenied,
    BucketMissing,
    Entry,
    NoRegularFile,
    ObjectMissing,
    StorageError,
    StorageFull,
    Store,
    Throttled,
    TooShort,
    Truncated,
    Unreachable,
    file_name,
    is_remote,
    local_error,
    parse_s3,
    read_document,
    split_url,
)
from data_pipeline.storage.local import SCRATCH, LocalStore, write_atomically
from model.files import sync

__all__ = [
    "CHUNK",
    "MOST_DOCUMENT",
    "SCRATCH",
    "AccessDenied",
    "BucketMissing",
    "Entry",
    "LocalStore",
    "NoRegularFile",
    "ObjectMissing",
    "StorageError",
    "StorageFull",
    "Store",
    "Throttled",
    "TooShort",
    "Truncated",
    "Unreachable",
    "file_name",
    "is_remote",
    "local_error",
    "open_store",
    "parse_s3",
    "read_document",
    "split_url",
    "sync",
    "write_atomically",
]


def open_store(url: str | Path, *, closed: bool = False) -> Store:
    """A local folder (need not exist yet) or `s3://bucket/prefix`. closed: see `LocalStore`."""
    if is_remote(url):
        from data_pipeline.storage.s3 import S3Store

        return S3Store(str(url))
    return LocalStore(Path(url), closed)
