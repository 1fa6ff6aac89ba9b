"""The files that a report may read: plain ones of the run's own folder, of a bearable size.

A page is passed on to others. Neither a name in a record nor a link in the folder may bring another
file of this machine onto it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from data_pipeline.storage import LocalStore, ObjectMissing, Store
from model.errors import ADDPError
from trainer.evaluation.results import FOLDER

_MOST = 2**28  # bytes of a record


class Unfit(ADDPError):
    """A file that a report does not take. The message says why."""


class Files:
    """The plain files of a run folder, or the objects of the store that a run uploads to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._root = store.root.resolve() if isinstance(store, LocalStore) else None
        self._sizes: dict[str, int] = {}  # of objects that were listed

    def read(self, name: str, most: int = _MOST) -> bytes:
        """The content of a file.

        Raises Unfit for what is no plain file or larger than `most` bytes, ObjectMissing, or
        StorageError.
        """
        if self._root is not None:
            return self._read_local(self._root / name, most)
        if name not in self._sizes:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(name)}
        size = self._sizes.get(name)
        if size is None:
            raise ObjectMissing(f"{name} is not there")
        return self.store.read(name, 0, _bounded(size, most))

    def plain(self, name: str) -> bytes:
        """As `read`, but an unfit file counts as missing. Raises ObjectMissing or StorageError."""
        try:
            return self.read(name)
        except Unfit as error:
            raise ObjectMissing(str(error)) from error

    def _read_local(self, path: Path, most: int) -> bytes:
        try:
            if path.resolve() != path:
                raise Unfit("a link, which is not followed")
            # O_NONBLOCK: a pipe would block.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise Unfit("no plain file")
                return file.read(_bounded(status.st_size, most))
        except FileNotFoundError as error:
            raise ObjectMissing("not there") from error
        except (OSError, RuntimeError, ValueError) as error:
            # RuntimeError: links in a circle. ValueError: a NUL in the name.
            raise Unfit(getattr(error, "strerror", None) or str(error)) from error

    def below(self, prefix: str) -> list[str]:
        """The sorted names of files that begin with a prefix, and of files in folders that do.

        Raises StorageError.
        """
        if self._root is not None:
            names = [p.relative_to(self._root).as_posix() for p in self._root.glob(f"{prefix}*/*")]
            names += [p.relative_to(self._root).as_posix() for p in self._root.glob(f"{prefix}*")]
        else:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(prefix)}
            names = [name for name in self._sizes if name.startswith(prefix)]
        return sorted(names)

    def results(self) -> list[str]:
        """The names of results of evaluations, by step. Raises StorageError."""
        steps = f"{FOLDER}/step-"
        if self._root is not None:
            paths = self._root.glob(f"{steps}*/*.json")
            names = [path.relative_to(self._root).as_posix() for path in paths]
        else:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(steps)}
            names = [n for n in self._sizes if n.startswith(steps) and n.endswith(".json")]
        return sorted(name for name in names if name.count("/") == 2)


def _bounded(size: int, most: int) -> int:
    if size > most:
        raise Unfit(f"larger than {most >> 20} MiB")
    return size
