"""An image as the networks take it: 8-bit RGB, the largest centred square. Imports no torch."""

from __future__ import annotations

from PIL import Image, ImageOps

from model.errors import DataError


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: turned, in place, as EXIF says, 16 bits scaled to 8, CMYK and
    palettes converted, transparency laid over white. Raises DataError for floating-point pixels."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise DataError("pixels are floating-point numbers, of no known scale")
    if image.mode.startswith("I"):  # 16-bit grey; a plain conversion would clip it
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def centred_square(width: int, height: int) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the largest centred square, in pixels."""
    side = float(min(width, height))
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
