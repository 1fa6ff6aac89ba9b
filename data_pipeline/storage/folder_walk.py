"""Lists the files below a folder, through links too, in a time that no arrangement of links can
stretch."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.storage.base import Entry, StorageError, local_error
from model.documents import show

_DEEPEST = 200  # folders in each other
_MOST_WAYS = 100  # to one folder through links; ten folders that link to each other have a million


def leads_out(root: Path, path: Path) -> bool:
    """Whether a path, with its links followed, lies outside of the root. The root may be a link."""
    top = os.path.realpath(root)
    return os.path.commonpath((top, os.path.realpath(path))) != top


class FolderWalk:
    """A walk below `root`.

    closed: a link that leads out of the root is listed with no bytes, and not entered. skip: the
    name of a folder below the root that is left out.
    """

    def __init__(self, root: Path, closed: bool, skip: str) -> None:
        self._root, self._closed, self._skip = root, closed, skip
        self._ways: Counter[tuple[int, int]] = Counter()

    def entries(self, folder: str, prefix: str) -> Iterator[Entry]:
        """Yield the files below `folder` whose names start with `prefix`.

        A link to nothing, a pipe and a device are listed with no bytes: reading them says what they
        are. Raises StorageError.
        """
        return self._below(folder, prefix, (), linked=False)

    def _below(
        self, folder: str, prefix: str, above: tuple[tuple[int, int], ...], linked: bool
    ) -> Iterator[Entry]:
        """above: the folders that this one lies in, as (device, inode). A link back to one of them
        holds nothing new."""
        path = self._root / folder
        try:
            status = path.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            self._ways[here] += linked
            if len(above) > _DEEPEST or self._ways[here] > _MOST_WAYS:
                how = (
                    "lies too deep"
                    if len(above) > _DEEPEST
                    else f"is reached in over {_MOST_WAYS:,} ways by links"
                )
                raise StorageError(f"{show(str(path))} {how}; name a folder without such links")
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError as error:
            raise local_error(error, f"{path}") from error
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            # A job asks for one of thousands of receipts, again and again.
            if not name.startswith(prefix):
                continue
            link = entry.is_symlink()
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise local_error(error, f"{self._root / name}") from error
                yield Entry(name, 0, 0.0)  # a link to nothing, or removed meanwhile
                continue
            if link and self._closed and leads_out(self._root, self._root / name):
                yield Entry(name, 0, status.st_mtime)
            elif stat.S_ISDIR(status.st_mode):
                if name != self._skip:
                    yield from self._below(name, prefix, (*above, here), linked or link)
            else:
                yield Entry(
                    name, status.st_size if stat.S_ISREG(status.st_mode) else 0, status.st_mtime
                )
