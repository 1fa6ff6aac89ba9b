"""What scenes lie on: a plain colour, a gradient, or a texture of two colours."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.scenes.draws import Draws

Shades = NDArray[np.float32]
_CELLS = (3, 6, 12)  # cells along a side, of the three noises that clouds are made of
MOST_DRAWS = 12 + sum((cells + 1) ** 2 for cells in _CELLS)


def draw_background(size: int, draws: Draws) -> tuple[str, NDArray[np.float32]]:
    """Return the kind of a background, one of KINDS, and its pixels (H, W, 3) in 0 to 255."""
    kind = draws.one_of(KINDS)
    first, second = _two_colours(draws)
    shade = _SHADES[kind](size, draws)[..., None]  # 0: the first colour, 1: the second one
    return kind, first * (1 - shade) + second * shade


def _two_colours(draws: Draws) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two colours that go together, light enough for emoji's black lines to show."""
    hue, saturation = draws.between(0, 1), draws.between(0.05, 0.55)
    value = draws.between(0.55, 1)
    other = colorsys.hsv_to_rgb(
        (hue + draws.between(-0.1, 0.1)) % 1,
        saturation * draws.between(0.4, 1),
        value + (0.22 if value < 0.75 else -0.22),
    )
    first = np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
    return first * 255, np.array(other, np.float32) * 255


def _along(size: int, draws: Draws) -> Shades:
    """Distance of each pixel along a random direction, in sides of the picture."""
    angle = draws.between(0, 2 * math.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(size)
    return x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))


def _plain(size: int, draws: Draws) -> Shades:
    return np.zeros((size, size), np.float32)


def _gradient(size: int, draws: Draws) -> Shades:
    along = _along(size, draws)
    return (along - along.min()) / np.ptp(along)


def _stripes(size: int, draws: Draws) -> Shades:
    along = _along(size, draws) * np.float32(draws.between(3, 9))
    return (along % 1 < 0.5).astype(np.float32)


def _checks(size: int, draws: Draws) -> Shades:
    cells = draws.between(3, 9)
    rows = np.floor(np.arange(size) * cells / size).astype(np.int64)
    return ((rows[:, None] + rows) % 2).astype(np.float32)


def _dots(size: int, draws: Draws) -> Shades:
    cells, radius = draws.between(4, 9), draws.between(0.15, 0.35)
    place = (np.arange(size) * cells / size) % 1 - 0.5
    return (np.hypot(place[:, None], place) < radius).astype(np.float32)


def _clouds(size: int, draws: Draws) -> Shades:
    """Smooth noise: random values at the corners of cells, with smaller cells weighing less."""
    noise, weight = np.zeros((size, size), np.float32), 1.0
    for cells in _CELLS:
        corners = [[draws.between(0, 1) for _ in range(cells + 1)] for _ in range(cells + 1)]
        values = Image.fromarray(np.array(corners, np.float32))
        smooth = values.resize((size, size), Image.Resampling.BICUBIC)
        noise += np.float32(weight) * np.asarray(smooth, np.float32)
        weight /= 2
    return (noise - noise.min()) / np.ptp(noise)


_SHADES: dict[str, Callable[[int, Draws], Shades]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "clouds": _clouds,
}
KINDS = tuple(_SHADES)
