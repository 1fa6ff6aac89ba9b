"""Draws many small images as one."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, columns: int, zoom: int = 1, gap: int = 2) -> Image.Image:
    """Draw images (N, 3, H, W) in [0, 1] row by row on grey. zoom: screen pixels a pixel; gap:
    pixels between images."""
    n, _, h, w = images.shape
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = -(-n // columns)
    h, w = h * zoom, w * zoom
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 200, np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet)
