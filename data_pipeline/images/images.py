"""An image: where its bytes lie, which split it belongs to, and how they become pixels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple, Protocol, TypeVar

from PIL import Image, UnidentifiedImageError

from data_pipeline.storage import (
    AccessDenied,
    LocalStore,
    NoRegularFile,
    ObjectMissing,
    Store,
    TooShort,
)
from model.documents import printable
from model.errors import DataError
from model.rgb import to_rgb

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
# Of Pillow's 40 formats the common ones, which it decodes without another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MOST_BYTES = 64 * 2**20
MOST_PIXELS = 2**30 // 12  # as Pillow's own limit: a third of a GiB at four bytes a pixel

T = TypeVar("T")

# Pillow warns of large images; they are refused here instead. To turn its warning into an error for
# a while is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class StoredImage(Protocol):
    """What reading an image needs to know: see `ImageEntry`."""

    @property
    def id(self) -> str: ...

    @property
    def object(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def offset(self) -> int | None: ...


class ImageEntry(NamedTuple):
    """An image of a source.

    id: unique in its source. label: index into the class names. Its bytes are `size` bytes of the
    object `object` in the source's store, from `offset` on; if `offset` is None, the object holds
    nothing else.
    """

    id: str
    label: int
    object: str
    size: int
    offset: int | None = None


@dataclass(frozen=True)
class ImageSource:
    """The images of one split, held in memory, in the order of their ids."""

    store: Store
    images: tuple[ImageEntry, ...]
    classes: tuple[str, ...]


def is_image(name: str) -> bool:
    """Whether a name is that of an image, by its suffix. Hidden files, such as the ._x.jpg that
    macOS puts beside x.jpg, are none."""
    base = name[name.rfind("/") + 1 :]
    dot = base.rfind(".")
    return dot > 0 and base[0] != "." and base[dot:].lower() in SUFFIXES


class BadImage(DataError):
    """Something is lastingly wrong with one image. reason: the same on every machine, for data sets
    hold it."""

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"cannot read the image {printable(image)}: {reason}")
        self.image, self.reason = image, reason

    # Engines send errors between processes.
    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return type(self), (self.image, self.reason)


def read_image(store: Store, entry: StoredImage) -> Image.Image:
    """Read an image and decode it to RGB, as `decode_image` does. Raises what `read_decoded`
    raises."""
    return read_decoded(store, entry, decode_image)


def read_decoded(store: Store, entry: StoredImage, decode: Callable[[bytes], T]) -> T:
    """Read an image and return what `decode` makes of its bytes; it raises DataError where they are
    no image of its kind.

    Raises BadImage if it is gone, another file than when it was listed, forbidden to us, or not
    decodable. Faults of the storage itself raise its own errors: they say nothing about the image.
    """
    if entry.size > MOST_BYTES:
        raise BadImage(entry.id, f"{entry.size:,} bytes, more than the limit of {MOST_BYTES:,}")
    whole = entry.offset is None
    try:
        # A byte more than a file had tells whether it has grown, however large it is now.
        data = store.read(entry.object, entry.offset or 0, entry.size + whole)
    except ObjectMissing as error:
        gone = "no regular file" if isinstance(error, NoRegularFile) else "gone since it was listed"
        raise BadImage(entry.id, gone) from error
    except AccessDenied as error:
        if not isinstance(store, LocalStore):  # there, it is our credentials that are wrong
            raise
        raise BadImage(entry.id, "its mode forbids reading it") from error
    except TooShort as error:
        if not whole:
            raise  # it is the tar that is cut
        data = error.content
    if len(data) != entry.size:
        size = f"{len(data)}" if len(data) < entry.size else f"more than {entry.size}"
        raise BadImage(entry.id, f"{size} bytes, but {entry.size} when it was listed")
    try:
        return decode(data)
    except DataError as error:
        raise BadImage(entry.id, str(error)) from error


def decode_image(data: bytes) -> Image.Image:
    """Decode an image to 8-bit RGB.

    The content, not the name, decides the format, one of `FORMATS`. The first frame counts; it is
    turned as EXIF says, 16 bits are scaled to 8, CMYK and palettes are converted, and transparency
    lies over white. Raises DataError with the reason for a file that is truncated, damaged, of
    another format, larger than `MOST_BYTES`, or of more than `MOST_PIXELS` once decoded.
    """
    return decoded(data, to_rgb)


def decoded(data: bytes, convert: Callable[[Image.Image], T]) -> T:
    """Decode an image, and return what `convert` makes of it while it is open. Raises DataError as
    `decode_image` does."""
    if len(data) > MOST_BYTES:
        raise DataError(f"{len(data):,} bytes, more than the limit of {MOST_BYTES:,}")
    try:
        return _opened(data, convert)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("empty file" if not data else "cannot identify image file") from error
    # A damaged file may raise anything; within these limits, the file is at fault.
    except Exception as error:
        text = " ".join(str(error).split())
        text = re.sub(r" at 0x[0-9a-f]+", "", text)[:200]  # the same on every machine
        expected = isinstance(error, OSError | SyntaxError | ValueError)
        raise DataError(text if text and expected else f"{type(error).__name__}: {text}") from error


def _opened(data: bytes, convert: Callable[[Image.Image], T]) -> T:
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        width, height = file.size
        if width * height > MOST_PIXELS:
            raise DataError(
                f"{width} x {height} pixels, more than the limit of {MOST_PIXELS:,}: a "
                "decompression bomb"
            )
        if width * height == 0:
            raise DataError("no pixels")
        file.load()
        return convert(file)
