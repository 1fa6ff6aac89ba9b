"""A file or folder that a command will write: what cannot be written is refused before the work, not after it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from data_pipeline.storage import StorageError
from model.errors import ConfigError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: Path, suffixes: Collection[str] = ()) -> None:
    """Writes and makes nothing. suffixes: those of the formats that can be written; any if empty.

    Raises ConfigError for another suffix or a folder in the way, StorageError where nobody may write.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path} cannot be written: its name must end in {' or '.join(suffixes)}")
    if suffixes and path.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a folder; name a file")
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if there != path.absolute() and not there.is_dir():
        raise ConfigError(f"{path} cannot be written: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise StorageError(f"{path} cannot be written: {there} may not be written by you; check its owner and mode")
