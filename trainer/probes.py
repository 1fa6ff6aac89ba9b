"""Whether a folder or a store can be written: by writing to it. Nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from data_pipeline.storage import LocalStore, StorageError, Store


def writable(folder: Path) -> Path:
    """The nearest folder that is there, if `folder` can be made in it and written. Raises StorageError or OSError where
    it cannot."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise StorageError(f"{folder} cannot be made: {there} is a file")
    try:
        with tempfile.TemporaryDirectory(prefix=".addp-check-", dir=there) as scratch:
            LocalStore(Path(scratch)).create("probe", b"addp check")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror} in {there}") from error
    return there


def probe(store: Store) -> None:
    """Put an object, see that it cannot be put again, read it, remove it. Raises StorageError."""
    name = f"addp-check-{uuid.uuid4().hex}"
    content = os.urandom(32)
    store.create(name, content)
    try:
        if store.read(name) != content:
            raise StorageError(f"{store.url}/{name} does not hold what was just written")
        if store.create(name, b"again"):
            raise StorageError(
                f"{store.url} lets an object be overwritten although If-None-Match forbids it: two writers could "
                "destroy each other's work; use a store with conditional puts"
            )
    finally:
        store.remove(name)
