"""Checks that a file, a folder or a store can be written, before the work and not after it. A check
leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.storage import LocalStore, StorageError, Store, is_remote
from data_pipeline.storage.urls import is_url
from model.errors import ConfigError

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: Path, suffixes: Collection[str] = ()) -> None:
    """Check by modes alone, without making a file, that `path` can be written.

    suffixes: those of the formats that can be written; none for a folder. Raises ConfigError for
    another suffix, or a file or folder in the way; StorageError if the mode forbids writing.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if suffixes and path.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a folder; name a file")
    there = path if suffixes and path.is_file() else _nearest_folder(path)
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise StorageError(
            f"{path} cannot be written: {there} may not be written by you; check its owner and mode"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what `check_output` cannot foresee, such as a full disk, into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error} ({error.filename})"
        ) from error


def is_within(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, with its links followed, is that of a folder or of something in it."""
    there, root = os.path.realpath(path), os.path.realpath(folder)
    return there == root or there.startswith(root.rstrip("/") + "/")


def check_apart(out: str | Path, images: str | Path, name: str = "OUT") -> None:
    """Raise ConfigError if what is written would lie among the images, and be taken for some.

    name: what the message calls `out`.
    """
    if is_url(images) or is_remote(out) != is_remote(images):
        return
    if is_remote(out):
        inside = (str(out).rstrip("/") + "/").startswith(str(images).rstrip("/") + "/")
    else:
        inside = is_within(out, images)
    if inside:
        raise ConfigError(
            f"{name} = {out} is the folder of the images, {images}, or in it; name one apart from "
            "it"
        )


def writable(folder: Path) -> Path:
    """Check that `folder` can be made, by writing beside it as a store does, and return the nearest
    folder that exists.

    Raises ConfigError if a file is in the way, StorageError if that folder cannot be written.
    """
    there = _nearest_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".addp-check-", dir=there) as scratch:
            LocalStore(Path(scratch)).create("probe", b"addp check")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror} in {there}") from error
    return there


def probe(store: Store) -> None:
    """Put an object, see that it cannot be put again, read it, remove it. Raises StorageError if
    the store does not behave as one."""
    name = f"addp-check-{uuid.uuid4().hex}"
    content = os.urandom(32)
    store.create(name, content)
    try:
        if store.read(name) != content:
            raise StorageError(f"{store.url}/{name} does not hold what was just written")
        if store.create(name, b"again"):
            raise StorageError(
                f"{store.url} lets an object be overwritten although If-None-Match forbids it: two "
                "writers could destroy each other's work; use a store with conditional puts"
            )
    finally:
        store.remove(name)


def _nearest_folder(path: Path) -> Path:
    """Return the nearest folder that exists: `path`, or one that it would be made in. Raises
    ConfigError if a file is in the way."""
    there = path.absolute()
    # Unlike Path.exists, os.access raises no error where a folder may not be entered.
    while not os.access(there, os.F_OK) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        if there == path.absolute():
            raise ConfigError(f"{path} cannot be written: it is a file; name a folder")
        raise ConfigError(f"{path} cannot be written: {there} is a file, not a folder")
    return there
