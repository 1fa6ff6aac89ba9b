"""Random brightness, contrast, saturation and hue, as mmsegmentation's PhotoMetricDistortion draws
them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DRAWS = 9  # numbers that `distort` takes
_BRIGHTNESS = 32.0  # added, at most, of 255
_FACTOR = (0.5, 1.5)  # of contrast and saturation
_HUE = 18 / 180  # turned, at most, of a circle
_LEVELS = np.arange(256, dtype=np.float32)


def distort(image: Image.Image, u: NDArray[np.float64]) -> Image.Image:
    """Change an RGB image: brightness, saturation and hue, in this order, each with probability
    one half; and contrast so, either before saturation or at the end.

    u: `DRAWS` numbers, uniform in (0, 1).
    """
    brightness, contrast, saturation, hue = (on < 0.5 for on in u[:4])
    contrast_first = u[8] < 0.5
    if brightness:
        image = image.point(_table(1.0, _between(-_BRIGHTNESS, _BRIGHTNESS, u[4])) * 3)
    factor = _table(_between(*_FACTOR, u[5]), 0.0) * 3
    if contrast and contrast_first:
        image = image.point(factor)
    if saturation or hue:
        same = list(range(256))
        turn = round(256 * _between(-_HUE, _HUE, u[7])) if hue else 0
        turned = [(level + turn) % 256 for level in same]
        richer = _table(_between(*_FACTOR, u[6]), 0.0) if saturation else same
        image = image.convert("HSV").point(turned + richer + same).convert("RGB")
    return image.point(factor) if contrast and not contrast_first else image


def _between(low: float, high: float, u: float) -> float:
    return low + (high - low) * float(u)


def _table(factor: float, added: float) -> list[int]:
    """Return what becomes of each of 256 levels."""
    return np.clip(_LEVELS * factor + added, 0, 255).astype(np.uint8).tolist()
