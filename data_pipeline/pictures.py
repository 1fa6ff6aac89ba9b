"""Picture sources: a folder of class folders, and how one picture file is read."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from model.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
Split = Literal["train", "val", "all"]


@dataclass(frozen=True)
class Picture:
    """id: path relative to the source, with forward slashes. label: index into the source's class names."""

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class PictureSource:
    """The pictures of one split, in a fixed order (by id)."""

    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]


def is_held_out(picture_id: str, share: float) -> bool:
    """Whether a picture belongs to the validation split: fixed by the hash of its id, whatever else there is."""
    digest = hashlib.sha256(picture_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def class_folders(root: Path | str, split: Split = "all", held_out: float = 0.1) -> PictureSource:
    """Pictures below ROOT/CLASS/, at any depth. `held_out`: share of the pictures in the validation split.

    Raises DataError for a missing folder, one without class folders or pictures, or a split left empty.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no picture folder {root}; give a folder that holds one folder for each class")
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not classes:
        raise DataError(f"{root} holds no class folders; put the pictures into one folder for each class")
    found = [
        Picture(path.relative_to(root).as_posix(), path, label)
        for label, name in enumerate(classes)
        for path in (root / name).rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not found:
        raise DataError(f"{root} has class folders but no pictures ({', '.join(sorted(SUFFIXES))}) in them")
    if split != "all":
        found = [p for p in found if is_held_out(p.id, held_out) == (split == "val")]
        if not found:
            raise DataError(
                f"the {split} split of {root} is empty; more pictures, or another held-out share, are needed"
            )
    return PictureSource(tuple(sorted(found, key=lambda p: p.id)), classes)


def read_picture(path: Path) -> Image.Image:
    """An RGB picture: first frame, turned as EXIF says, 16 bit scaled to 8, transparency laid over white.

    Raises DataError with the file and the reason for anything that cannot be read so.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey; a plain conversion would clip it
                image = image.point(lambda value: value * (1 / 256)).convert("L")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError, Warning) as error:
        raise DataError(f"cannot read the picture {path}: {error}") from error
