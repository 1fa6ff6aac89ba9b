"""The files of a launch plan, as they are written before its commands run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.launch.backend import PlannedFile
from model.errors import ConfigError


class UnwritablePlan(ConfigError):
    """A file of a launch plan cannot be written, or not be removed."""


@contextmanager
def written(files: Sequence[PlannedFile]) -> Iterator[None]:
    """Write the files of a plan, readable by their owner only, and remove the private ones after.

    Raises UnwritablePlan where one cannot be written, or a private one not be removed.
    """
    try:
        for file in files:
            _write(file)
        yield
    finally:
        for file in files:
            if file.private:
                _remove(file)


def _write(file: PlannedFile) -> None:
    """Write a file whole: under a name of its own first, which nobody else can have made."""
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.path.parent, prefix=f".{file.path.name}-")
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(file.text)
            partial.replace(file.path)
        except BaseException:  # it may hold values of variables
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UnwritablePlan(f"{file.path} cannot be written: {error.strerror}") from error


def _remove(file: PlannedFile) -> None:
    try:
        file.path.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritablePlan(
            f"{file.path} holds values of variables and cannot be removed: {error.strerror}"
        ) from error
