"""What the data that an evaluation reads are, whatever they are called: a result depends on them,
not on their path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from data_pipeline.images.images import ImageEntry, of_split
from data_pipeline.images.sources import open_source
from data_pipeline.shards.manifest import read_fingerprinted
from data_pipeline.storage import BucketMissing
from model.errors import ConfigError, DataError

KEYS = (
    "images",
    "train_images",
    "tokens",
    "train_tokens",
    "inception_weights",
)  # the options that name data


class Listing(NamedTuple):
    """images: all of a source, in the order of their ids. classes: names, which their labels
    index."""

    images: tuple[ImageEntry, ...]
    classes: tuple[str, ...]

    @property
    def key(self) -> str:
        """Of names below the root, labels and sizes in bytes, in any order; 64 hexadecimal digits.

        No image is opened: one that was replaced by another of as many bytes is not noticed.
        """
        total = 0
        for p in self.images:
            line = f"{p.id}\n{p.label} {p.size}".encode()
            total += int.from_bytes(hashlib.sha256(line).digest(), "big")
        return hashlib.sha256(f"{total:x}".encode()).hexdigest()


def listing_of(place: str) -> Listing:
    """Raises DataError, also where there is no such place; or StorageError."""
    try:
        source = open_source(place)
        images = tuple(sorted(of_split(source.images(), "all", 0)))
    except BucketMissing as error:  # to wait for it is of no use
        raise DataError(str(error)) from error
    return Listing(images, source.classes.names)


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


class Contents:
    """The listing and the key of each place, taken once."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def listing(self, place: str) -> Listing:
        """Raises ADDPError."""
        if place not in self._listings:
            self._listings[place] = listing_of(place)
        return self._listings[place]

    def key(self, option: str, place: str | None) -> str | None:
        """Of what an option of `KEYS` names; None where it names nothing. Raises ADDPError."""
        if place is None:
            return None
        known = (option.removeprefix("train_"), place)
        if known not in self._keys:
            self._keys[known] = self._taken(*known)
        return self._keys[known]

    def _taken(self, option: str, place: str) -> str:
        if option == "images":
            return self.listing(place).key
        return tokens_key(place) if option == "tokens" else file_key(place)

    def forget_listings(self) -> None:
        """They take some hundred bytes an image; keys stay."""
        self._listings.clear()
