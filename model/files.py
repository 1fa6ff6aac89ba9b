"""How files get their names: whole or not at all, and with the mode that the umask gives.

write     FILE.PID.tmp          beside FILE, so that a rename needs no copy
fsync     FILE.PID.tmp          the bytes survive a power cut
rename    FILE.PID.tmp -> FILE  readers see the old file or the new one, nothing between
fsync     the folder            the new name survives a power cut, too
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; at the end of the context, it takes the place of
    `path`. After an error it is removed, and `path` stays as it was.

    durable: survive a power cut, which takes two waits for the disk. The file has the mode of any
    new file, even if a library writes it that makes private files. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.open("wb").close()
        # A new file shows the umask, which cannot be read without changing it for other threads.
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:
            partial.chmod(mode)
        if durable:
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all, as `whole_file` does. Raises OSError."""
    with whole_file(path, durable=durable) as partial:
        partial.write_bytes(content)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's new names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
