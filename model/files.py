"""How every file of ours gets its name: whole or not at all, and with the mode that the umask
gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: when the context ends it is synced and takes its place; on
    an error it goes.

    The file has the mode of any new file, also where a library writes it that makes private ones.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.open("wb").close()
        mode = (
            partial.stat().st_mode
        )  # the umask cannot be read without changing it under other threads
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's new names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
