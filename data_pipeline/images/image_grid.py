"""Draws many small images as one."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

GAP = 2  # pixels between images, and around them


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
