"""What the data of an evaluation are, wherever they lie: a result depends on the data, not on their
path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.sources import open_source
from data_pipeline.images.split import of_split
from data_pipeline.shards.manifest import read_fingerprinted
from data_pipeline.storage import BucketMissing
from model.errors import ConfigError, DataError

# The options that name data.
KEYS = ("images", "train_images", "tokens", "train_tokens", "inception_weights")


class Listing(NamedTuple):
    """All images of a source, in the order of their ids. classes: their names, which the labels of
    images index."""

    images: tuple[ImageEntry, ...]
    classes: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash of names below the root, labels and sizes in bytes, in any order; 64 hexadecimal
        digits.

        No image is opened: an image that was replaced by another of as many bytes is not noticed.
        """
        total = 0
        for image in self.images:
            line = f"{image.id}\n{image.label} {image.size}".encode()
            total += int.from_bytes(hashlib.sha256(line).digest(), "big")
        return hashlib.sha256(f"{total:x}".encode()).hexdigest()


def listing_of(location: str) -> Listing:
    """List the images of a source. Raises DataError, also where there is none; or StorageError."""
    try:
        source = open_source(location)
        images = tuple(sorted(of_split(source.images(), "all", 0)))
    except BucketMissing as error:  # to wait for it is of no use
        raise DataError(str(error)) from error
    return Listing(images, source.classes.names)


def tokens_key(location: str) -> str:
    """The fingerprint of a token data set. Raises DataError or StorageError."""
    return read_fingerprinted(location)[1]


def file_key(path: str) -> str:
    """The sha256 of a file. Raises ConfigError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


class Contents:
    """The listing and the key of each location, computed once."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def listing(self, location: str) -> Listing:
        """The images of a source. Raises ADDPError."""
        if location not in self._listings:
            self._listings[location] = listing_of(location)
        return self._listings[location]

    def key(self, option: str, location: str | None) -> str | None:
        """A hash of the data that an option of `KEYS` names; None where it names none. Raises
        ADDPError."""
        if location is None:
            return None
        known = (option.removeprefix("train_"), location)
        if known not in self._keys:
            self._keys[known] = self._key(*known)
        return self._keys[known]

    def _key(self, option: str, location: str) -> str:
        if option == "images":
            return self.listing(location).key
        return tokens_key(location) if option == "tokens" else file_key(location)

    def forget_listings(self) -> None:
        """Free the memory of the listings, some hundred bytes an image; keys stay."""
        self._listings.clear()
