"""Which images of a source are held out for evaluation: a hash of the name says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from model.documents import show
from model.errors import DataError

if TYPE_CHECKING:  # it loads Pillow
    from data_pipeline.images.images import ImageEntry

Split = Literal["all", "train", "val"]
_LONGEST_NAME = 4096  # bytes, as of a path; a line of a plan's list has room for two


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image belongs to the validation split. The hash of its id alone decides, so adding
    images moves no other image between the splits."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def of_split(images: Iterable[ImageEntry], split: Split, held_out: float) -> Iterator[ImageEntry]:
    """Yield the images of a split. held_out: share of the images in the validation split. Raises
    DataError for a name that is not UTF-8, or too long."""
    for p in images:
        try:
            length = len(p.id.encode()) + len(p.object.encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"the name of the image {show(p.id)} is not UTF-8; rename it"
            ) from error
        if length > 2 * _LONGEST_NAME:
            raise DataError(
                f"the name of the image {show(p.id)} has more than {_LONGEST_NAME:,} bytes; rename "
                "it"
            )
        if split == "all" or is_held_out(p.id, held_out) == (split == "val"):
            yield p
