"""What the data of an evaluation are, wherever they lie: a result depends on the data, not on their
path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.annotations.ade20k import Part, SegmentationListing, list_ade20k
from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.images.images import ImageEntry
from data_pipeline.images.sources import open_source
from data_pipeline.images.split import of_split
from data_pipeline.shards.manifest import read_fingerprinted
from data_pipeline.storage import BucketMissing
from model.errors import ConfigError, DataError

# The options that name data, and those of them that do so together with a split.
ANNOTATED = ("ade20k", "coco")
KEYS = ("images", "train_images", "tokens", "train_tokens", "inception_weights", *ANNOTATED)
_PARTS: dict[str, Part] = {"train": "training", "val": "validation"}  # of ADE20k, by split

Annotations = SegmentationListing | CocoIndex


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


def annotations_of(option: str, location: str, split: str) -> Annotations:
    """List the annotated images of a split: of ADE20k's layout for "ade20k", of COCO's for "coco".

    Raises DataError, also where there are none; ConfigError for a split that ADE20k does not have;
    or StorageError.
    """
    if option == "ade20k" and split not in _PARTS:
        raise ConfigError(f"--split {split}: ADE20k has the splits {', '.join(_PARTS)}")
    try:
        if option == "ade20k":
            return list_ade20k(location, _PARTS[split])
        return read_coco(location, split, exact=True)
    except BucketMissing as error:  # to wait for it is of no use
        raise DataError(str(error)) from error


def annotations_key(found: Annotations) -> str:
    """A hash of the classes, the images' names and sizes, and the annotations; of ADE20k's, which
    are not opened, the sizes in bytes."""
    digest = hashlib.sha256(found.fingerprint().encode())
    if isinstance(found, CocoIndex):  # what evaluation needs beside what is learned from
        for values in (found.image_ids, found.category_ids, found.areas):
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


class Contents:
    """The listing and the key of each location, computed once. split: of annotated images."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._listings: dict[str, Listing] = {}
        self._annotations: dict[tuple[str, str], Annotations] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def listing(self, location: str) -> Listing:
        """The images of a source. Raises ADDPError."""
        if location not in self._listings:
            self._listings[location] = listing_of(location)
        return self._listings[location]

    def annotations(self, option: str, location: str) -> Annotations:
        """The annotated images that an option of `ANNOTATED` names. Raises ADDPError."""
        wanted = (option, location)
        if wanted not in self._annotations:
            self._annotations[wanted] = annotations_of(option, location, self._split)
        return self._annotations[wanted]

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
        if option in ANNOTATED:
            return annotations_key(self.annotations(option, location))
        return tokens_key(location) if option == "tokens" else file_key(location)

    def forget_listings(self) -> None:
        """Free the memory of the listings, some hundred bytes an image, and of annotations; keys
        stay."""
        self._listings.clear()
        self._annotations.clear()
