"""Grids of images as PNGs, large enough to see."""

from __future__ import annotations

import io

from PIL import Image

_SIDE = 96  # pixels of an image that is small


def png(image: Image.Image) -> bytes:
    """The PNG of an image."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def zoom_of(size: int) -> int:
    """The factor by which images of `size` pixels a side are enlarged."""
    return max(1, _SIDE // size)
