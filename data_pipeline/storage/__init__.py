"""Where data sets and images lie: a folder or a bucket, behind one interface (`open_store`)."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.storage.base import (
    CHUNK,
    AccessDenied,
    BucketMissing,
    Entry,
    NoRanges,
    NoRegularFile,
    ObjectMissing,
    SourceChanged,
    StorageError,
    Store,
    StreamFailed,
    Throttled,
    TooShort,
    Truncated,
    Unreachable,
    file_name,
    is_remote,
    read_document,
    split_url,
)
from data_pipeline.storage.local import LocalStore

__all__ = [
    "CHUNK",
    "AccessDenied",
    "BucketMissing",
    "Entry",
    "LocalStore",
    "NoRanges",
    "NoRegularFile",
    "ObjectMissing",
    "SourceChanged",
    "StorageError",
    "Store",
    "StreamFailed",
    "Throttled",
    "TooShort",
    "Truncated",
    "Unreachable",
    "file_name",
    "is_remote",
    "open_store",
    "read_document",
    "split_url",
]


def open_store(url: str | Path, *, closed: bool = False) -> Store:
    """Open a local folder, which need not exist yet, or `s3://bucket/prefix`.

    closed: no link in a local folder may lead out of it (see `LocalStore`).
    """
    if is_remote(url):
        from data_pipeline.storage.s3 import S3Store  # boto3 takes a second to import

        return S3Store(str(url))
    return LocalStore(Path(url), closed=closed)
