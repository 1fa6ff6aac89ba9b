"""What the data that an evaluation reads are, whatever they are called: a result depends on them, not on their path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from data_pipeline.dataset import read_fingerprinted
from data_pipeline.sources import open_source
from data_pipeline.storage import BucketMissing
from model.errors import ConfigError, DataError


def pictures_key(place: str) -> str:
    """Of the listing of a source: names below its root, labels and sizes in bytes, in any order; 64 hexadecimal digits.

    No picture is opened: one that was replaced by another of as many bytes is not noticed. Nothing is kept in memory.
    Raises DataError, also where there is no such place; or StorageError.
    """
    total = 0
    try:
        for p in open_source(place).pictures():
            line = f"{p.id}\n{p.label} {p.size}".encode()
            total += int.from_bytes(hashlib.sha256(line).digest(), "big")
    except BucketMissing as error:  # to wait for it is of no use
        raise DataError(str(error)) from error
    return hashlib.sha256(f"{total:x}".encode()).hexdigest()


def tokens_key(place: str) -> str:
    """The data set's fingerprint. Raises DataError or StorageError."""
    return read_fingerprinted(place)[1]


def file_key(place: str) -> str:
    """sha256 of a file. Raises ConfigError where it cannot be read."""
    try:
        with Path(place).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror}") from error


KEYS: dict[str, Callable[[str], str]] = {  # the options that name data
    "pictures": pictures_key, "train_pictures": pictures_key, "tokens": tokens_key, "train_tokens": tokens_key,
    "inception_weights": file_key,
}  # fmt: skip


class Contents:
    """The key of each place, taken once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Callable[[str], str], str], str] = {}

    def key(self, option: str, place: str | None) -> str | None:
        """Of what an option of `KEYS` names; None where it names nothing. Raises ADDPError."""
        if place is None:
            return None
        known = (KEYS[option], place)
        if known not in self._known:
            self._known[known] = KEYS[option](place)
        return self._known[known]
