"""A picture: where its bytes lie, which split it belongs to, and how they become pixels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipeline.storage import AccessDenied, LocalStore, ObjectMissing, Store
from model.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
Split = Literal["train", "val", "all"]


class Picture(NamedTuple):
    """id: unique in its source. label: index into the class names. The bytes are `size` bytes of the object `object`
    of the source's store from `offset` on; the object holds nothing else where `offset` is None."""

    id: str
    label: int
    object: str
    size: int
    offset: int | None = None


@dataclass(frozen=True)
class PictureSource:
    """The pictures of one split, held in memory, in the order of their ids."""

    store: Store
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]


def is_picture(name: str) -> bool:
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in SUFFIXES


def is_held_out(picture_id: str, share: float) -> bool:
    """Whether a picture belongs to the validation split: fixed by the hash of its id, whatever else there is."""
    digest = hashlib.sha256(picture_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def of_split(pictures: Iterable[Picture], split: Split, held_out: float) -> Iterator[Picture]:
    """held_out: share of the pictures in the validation split."""
    if split == "all":
        return iter(pictures)
    return (p for p in pictures if is_held_out(p.id, held_out) == (split == "val"))


class BadPicture(DataError):
    """What is lastingly wrong with one picture. reason: the same on every machine, for it stands in data sets."""

    def __init__(self, picture: str, reason: str) -> None:
        super().__init__(f"cannot read the picture {picture}: {reason}")
        self.picture, self.reason = picture, reason

    def __reduce__(self) -> tuple[type[BadPicture], tuple[str, str]]:  # engines send errors between processes
        return type(self), (self.picture, self.reason)


def read_picture(store: Store, picture: Picture) -> Image.Image:
    """An RGB picture, as `decode_picture` makes it.

    Raises BadPicture where it is gone, another file than when it was listed, not to be read by us, or not decodable.
    Faults of the storage itself raise its own errors: they say nothing about the picture.
    """
    try:
        data = store.read(picture.object, picture.offset or 0, None if picture.offset is None else picture.size)
    except ObjectMissing as error:
        raise BadPicture(picture.id, "gone since it was listed") from error
    except AccessDenied as error:
        if not isinstance(store, LocalStore):  # there, it is our credentials that are wrong
            raise
        raise BadPicture(picture.id, "its mode forbids reading it") from error
    if len(data) != picture.size:
        raise BadPicture(picture.id, f"{len(data)} bytes, but {picture.size} when it was listed")
    try:
        return decode_picture(data)
    except DataError as error:
        raise BadPicture(picture.id, str(error)) from error


def decode_picture(data: bytes) -> Image.Image:
    """RGB: first frame, turned as EXIF says, 16 bit scaled to 8, CMYK and palettes converted, transparency over white.

    The content decides the format, not the name. Raises DataError with the reason for anything else, also for a
    truncated file and for one of more than Pillow's limit of pixels (a decompression bomb).
    """
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(data)) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey; a plain conversion would clip it
                image = image.point(lambda value: value * (1 / 256)).convert("L")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError("empty file" if not data else "cannot identify image file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise DataError(str(error) or type(error).__name__) from error
