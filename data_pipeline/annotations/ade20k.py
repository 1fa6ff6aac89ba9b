"""Reads ADE20k as it is distributed, in a folder, in tars, or on S3; either of two layouts.

The scene parsing challenge (ADEChallengeData2016), and any data of its form:

    objectInfo150.txt                   the classes, one a line, in the order of their labels
    images/training/NAME.jpg            training or validation
    annotations/training/NAME.png       a byte a pixel: 0 is anything else, 1 to 150 a class

The full data set (ADE20K_2021_17_01, ADE20K_2016_07_26), of which the challenge's classes are read:

    images/ADE/training/any/depth/NAME.jpg
    images/ADE/training/any/depth/NAME_seg.png      R // 10 * 256 + G is the number of the class

As the challenge was made of the full data set, images whose shorter side has more than 512 pixels
are reduced to that. Labels are 0 to 149 here, and IGNORE (255) for anything else.

| what is wrong | outcome |
|---|---|
| an image has no annotation, or an annotation no image | left out and counted |
| an image or an annotation is unreadable | the next image takes its place; counted |
| an annotation has another size than its image | the same |
| an annotation has a class that is not listed | the same; in the full data set it is ignored |

More of them than a share of all images is an error.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.ade20k_classes import NUMBERS
from data_pipeline.annotations.files import DataFiles, StoredFile, read_whole
from data_pipeline.annotations.problems import Problems
from data_pipeline.annotations.segmentation_crop import IGNORE
from data_pipeline.images.images import BadImage, decoded, is_image, read_decoded, read_image
from data_pipeline.images.location import locate
from data_pipeline.storage import Store
from model.errors import DataError

Layout = Literal["challenge", "full"]
Part = Literal["training", "validation"]
_CLASSES = "objectInfo150.txt"
_MOST_CLASSES = IGNORE - 1  # a byte has one value for anything else, and IGNORE
_LARGEST_LIST = 2**20  # bytes
_MASK = "_seg.png"
_REDUCED = 512  # pixels, of the shorter side


class SegmentedImage(NamedTuple):
    """An image and the file with its classes."""

    image: StoredFile
    mask: StoredFile


@dataclass(frozen=True)
class SegmentationListing:
    """The images of a part of the data, by their names, ascending; what rank 0 can send to all
    ranks. problems: what was wrong with them."""

    layout: Layout
    classes: tuple[str, ...]
    images: tuple[SegmentedImage, ...]
    problems: Problems

    def fingerprint(self) -> str:
        """Return a hash of the classes, and of names and sizes of the files."""
        sizes = [(pair.image.id, pair.image.size, pair.mask.size) for pair in self.images]
        return hashlib.sha256(json.dumps([self.layout, self.classes, sizes]).encode()).hexdigest()


class LabelledImage(NamedTuple):
    """An RGB image, and the label of each of its pixels: uint8 (height, width)."""

    image: Image.Image
    labels: NDArray[np.uint8]


class SegmentationSource:
    """The images and label maps of a listing, where they lie. Threads may share it."""

    def __init__(self, store: Store, listing: SegmentationListing) -> None:
        self.store, self.listing = store, listing

    def __len__(self) -> int:
        return len(self.listing.images)

    def read(self, row: int) -> LabelledImage:
        """Read an image and its labels. Raises BadImage if either cannot be read, or they do not
        fit together; StorageError."""
        pair, classes = self.listing.images[row], len(self.listing.classes)
        image = read_image(self.store, pair.image)
        labels = read_decoded(
            self.store,
            pair.mask,
            _full_labels if self.listing.layout == "full" else lambda data: _labels(data, classes),
        )
        if labels.shape != (image.height, image.width):
            raise BadImage(
                pair.image.id,
                f"{image.width} x {image.height} pixels, but {pair.mask.id} has "
                f"{labels.shape[1]} x {labels.shape[0]}",
            )
        found = LabelledImage(image, labels)
        return _reduced(found) if self.listing.layout == "full" else found


def open_ade20k(url: str | Path, part: Part, *, bad_limit: float = 0.01) -> SegmentationSource:
    """List a part of the data and return its source. Raises what `list_ade20k` raises."""
    listing = list_ade20k(url, part, bad_limit=bad_limit)
    return SegmentationSource(locate(url).store, listing)


def list_ade20k(url: str | Path, part: Part, *, bad_limit: float = 0.01) -> SegmentationListing:
    """List the images of a part of the data, and what is wrong with them.

    bad_limit: share of the images that may lack an annotation, or the other way round, at least
    one. Raises DataError for data of neither layout, without images, or above the limit;
    StorageError.
    """
    files = DataFiles(url)
    problems = Problems()
    layout, images, masks = _sorted_out(files, part)
    classes = tuple(NUMBERS) if layout == "full" else _class_names(files)
    names = sorted(images.keys() & masks.keys())
    for name in sorted(images.keys() - masks.keys()):
        problems.add("image without an annotation", name)
    for name in sorted(masks.keys() - images.keys()):
        problems.add("annotation without an image", name)
    problems.report(f"{url}, {part}", len(images.keys() | masks.keys()), bad_limit)
    if not names:
        raise DataError(
            f"{url} has no annotated images of {part}; docs/annotations.md shows both layouts"
        )
    pairs = tuple(SegmentedImage(images[name], masks[name]) for name in names)
    return SegmentationListing(layout, classes, pairs, problems)


def _sorted_out(
    files: DataFiles, part: Part
) -> tuple[Layout, dict[str, StoredFile], dict[str, StoredFile]]:
    """Return the layout, and the part's images and annotations by what names both. Raises DataError
    where a name stands for two images or two annotations."""
    path = re.compile(rf"(?:.*/)?(?:images/(?:ADE/)?|(annotations/)){part}/(.+)")
    images: dict[str, StoredFile] = {}
    masks: dict[str, StoredFile] = {}
    beside: dict[str, StoredFile] = {}
    for name, file in files.by_name.items():
        match = path.fullmatch(name)
        if match is None or not is_image(name):
            continue
        if name.endswith(_MASK):
            found, key = beside, match[2].removesuffix(_MASK)
        else:
            found, key = masks if match[1] else images, posixpath.splitext(match[2])[0]
        if key in found:
            raise DataError(
                f"{files.url} has two files for {part}/{key}, {found[key].id} and {name}; remove "
                "one"
            )
        found[key] = file
    if masks:
        return "challenge", images, masks
    # Beside its image, the full data set has others: NAME_parts_1.png, NAME/instance_000_NAME.png.
    photographs = {
        name: file for name, file in images.items() if not file.id.lower().endswith(".png")
    }
    return "full", photographs, beside


def _class_names(files: DataFiles) -> tuple[str, ...]:
    """Read the list of classes: a header, then a line for each class, with tabs between its number,
    some figures and, last, its name and synonyms."""
    found = [file for name, file in files.by_name.items() if posixpath.basename(name) == _CLASSES]
    if len(found) != 1:
        has = f"several files {_CLASSES}" if found else f"no {_CLASSES}"
        raise DataError(f"{files.url} has {has}; it names the classes, and ships with ADE20k")
    where = f"{files.url}/{found[0].id}"
    try:
        text = read_whole(files.store, found[0], _LARGEST_LIST).decode()
        rows = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
        numbers = [int(row[0]) for row in rows]
    except ValueError as error:
        raise DataError(f"{where} is no list of classes: {error}") from error
    names = tuple(row[-1].split(",")[0].strip() for row in rows)
    numbered = numbers == list(range(1, len(rows) + 1)) and 0 < len(rows) <= _MOST_CLASSES
    if not numbered or not all(names):
        raise DataError(
            f"{where} is no list of classes: after a header it should number 1 to {_MOST_CLASSES} "
            "at most, a line with a name each"
        )
    return names


def _labels(data: bytes, classes: int) -> NDArray[np.uint8]:
    """Decode an annotation of the challenge. Raises DataError."""
    values = decoded(data, _values)
    highest = int(values[values != IGNORE].max(initial=0))
    if highest > classes:
        raise DataError(f"its class {highest} is not among the {classes} that are listed")
    values[values == 0] = IGNORE
    values[values != IGNORE] -= 1
    return values


def _values(image: Image.Image) -> NDArray[np.uint8]:
    """The bytes of an image with one byte a pixel; of a palette, the indices."""
    if image.mode not in ("L", "P"):
        raise DataError(f"its pixels are of mode {image.mode}, not one byte each")
    return np.array(image)


def _full_labels(data: bytes) -> NDArray[np.uint8]:
    """Decode an annotation of the full data set. Raises DataError."""
    numbers = decoded(data, _numbers)
    table = np.full(26 * 256, IGNORE, np.uint8)
    for label, of_class in enumerate(NUMBERS.values()):
        table[list(of_class)] = label
    return table[numbers]


def _numbers(image: Image.Image) -> NDArray[np.uint16]:
    if image.mode != "RGB":
        raise DataError(f"its pixels are of mode {image.mode}, not RGB")
    channels = np.asarray(image).astype(np.uint16)
    return channels[..., 0] // 10 * 256 + channels[..., 1]


def _reduced(found: LabelledImage) -> LabelledImage:
    """As the challenge's convertFromADE.m does, which leaves squares as they are."""
    short, long = sorted(found.image.size)
    if short == long or short <= _REDUCED:
        return found
    width, height = (round(side / short * _REDUCED) for side in found.image.size)
    size = (width, height)
    labels = Image.fromarray(found.labels).resize(size, Image.Resampling.NEAREST)
    return LabelledImage(found.image.resize(size, Image.Resampling.BICUBIC), np.asarray(labels))
