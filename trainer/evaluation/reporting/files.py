"""Files that a report may read: plain ones of the run's own folder, of a bearable size.

A page is passed on: neither a name in a record nor a link in the folder may bring another file of
this machine onto it.
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
    """A file that is not taken into a report. The message says why."""


class Files:
    """Plain files of a run folder, or objects of the store that a run uploads to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._root = store.root.resolve() if isinstance(store, LocalStore) else None
        self._sizes: dict[str, int] = {}  # of objects that were listed

    def read(self, name: str, most: int = _MOST) -> bytes:
        """Raises Unfit for what is no plain file, or larger than `most` bytes; ObjectMissing;
        StorageError."""
        if self._root is not None:
            return self._read_local(self._root / name, most)
        if name not in self._sizes:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(name)}
        size = self._sizes.get(name)
        if size is None:
            raise ObjectMissing(f"{name} is not there")
        return self.store.read(name, 0, _bounded(size, most))

    def plain(self, name: str) -> bytes:
        """As `read`; what is unfit is not there. Raises ObjectMissing and StorageError."""
        try:
            return self.read(name)
        except Unfit as error:
            raise ObjectMissing(str(error)) from error

    def _read_local(self, path: Path, most: int) -> bytes:
        try:
            if path.resolve() != path:
                raise Unfit("a link, which is not followed")
            handle = os.open(
                path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            )  # a pipe would block
            with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise Unfit("no plain file")
                return file.read(_bounded(status.st_size, most))
        except FileNotFoundError as error:
            raise ObjectMissing("not there") from error
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # RuntimeError: links in a circle; ValueError: a NUL
            raise Unfit(getattr(error, "strerror", None) or str(error)) from error

    def below(self, prefix: str) -> list[str]:
        """Names of files that begin so, sorted: of a folder and what it holds. Raises
        StorageError."""
        if self._root is not None:
            found = [p.relative_to(self._root).as_posix() for p in self._root.glob(f"{prefix}*/*")]
            found += [p.relative_to(self._root).as_posix() for p in self._root.glob(f"{prefix}*")]
        else:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(prefix)}
            found = [name for name in self._sizes if name.startswith(prefix)]
        return sorted(found)

    def results(self) -> list[str]:
        """Names of the results of evaluations, by step. Raises StorageError."""
        if self._root is not None:
            found = [
                p.relative_to(self._root).as_posix()
                for p in self._root.glob(f"{FOLDER}/step-*/*.json")
            ]
        else:
            self._sizes |= {entry.name: entry.size for entry in self.store.list(f"{FOLDER}/step-")}
            found = [
                name
                for name in self._sizes
                if name.startswith(f"{FOLDER}/step-") and name.endswith(".json")
            ]
        return sorted(name for name in found if name.count("/") == 2)


def _bounded(size: int, most: int) -> int:
    if size > most:
        raise Unfit(f"larger than {most >> 20} MiB")
    return size
