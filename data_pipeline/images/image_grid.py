"""Draws many small images as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 2  # pixels between images, and around them
_FONT = 14  # pixels
_LONGEST = 32  # characters of a name that are shown


def image_grid(images: Tensor, columns: int, zoom: int = 1) -> Image.Image:
    """Draw images (N, 3, H, W) in [0, 1] row by row on grey. zoom: the side of a pixel in the
    result, in pixels."""
    n, _, h, w = images.shape
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = -(-n // columns)
    h, w = h * zoom, w * zoom
    sheet = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), 200, np.uint8)
    for i, image in enumerate(pixels):
        top, left = GAP + (i // columns) * (h + GAP), GAP + (i % columns) * (w + GAP)
        sheet[top : top + h, left : left + w] = image.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet)


def rows_of_classes(images: Tensor, names: Sequence[str], zoom: int = 1) -> Image.Image:
    """Draw one row of images for each of n classes, with its name before it.

    images: (n * columns, 3, H, W) in [0, 1]; image i is of class i mod n. names: of the classes.
    """
    columns = len(images) // len(names)
    by_class = images.view(columns, len(names), *images.shape[1:]).transpose(0, 1).flatten(0, 1)
    grid = image_grid(by_class, columns, zoom)
    font = ImageFont.load_default(_FONT)
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..." for name in names]
    width = int(max(map(font.getlength, shown))) + 4 * GAP
    sheet = Image.new("RGB", (width + grid.width, grid.height), (255, 255, 255))
    sheet.paste(grid, (width, 0))
    draw, step = ImageDraw.Draw(sheet), (grid.height - GAP) / len(names)
    for row, name in enumerate(shown):
        at = (width - 2 * GAP, GAP + (row + 0.5) * step)
        draw.text(at, name, fill=(40, 40, 40), font=font, anchor="rm")
    return sheet
