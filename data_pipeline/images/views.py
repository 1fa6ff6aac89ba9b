"""Views of an image: seeded random resized crops with flips for training, a centre crop for
evaluation.

A view is a pure function of (seed, image id, view index): it is the same on any machine, and in any
order of work.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.images.view_recipe import ViewRecipe
from model.randomness import uniforms
from model.rgb import centred_square

_TRIES = 10  # as in torchvision: after so many crops that do not fit, take the largest that does


def make_view(
    image: Image.Image, image_id: str, view: int, recipe: ViewRecipe
) -> NDArray[np.uint8]:
    """Make a view of an RGB image: uint8 (size, size, 3), bicubic and antialiased.

    image_id, view: with the recipe's seed, they determine the crop and the flip.
    """
    if recipe.kind == "center_crop":
        return _resize(image, centred_square(*image.size), recipe.size)
    u = uniforms(recipe.seed, f"view/{image_id}", view, 1, 4 * _TRIES + 1)[0]
    array = _resize(image, _random_box(*image.size, recipe, u), recipe.size)
    return array[:, ::-1] if u[-1] < recipe.flip else array


def resized_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return torchvision's Resize(size) and CenterCrop(size) of an image, bit for bit: uint8
    (size, size, 3).

    The shorter side becomes `size`, bilinear and antialiased, and the longer one is rounded down;
    then the middle is cut out. Published metrics of generation crop real images so; training does
    not.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = size * width // short, size * height // short
    left, top = round((wide - size) / 2), round((high - size) / 2)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], size: int
) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _random_box(
    width: int, height: int, recipe: ViewRecipe, u: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    low, high = (math.log(r) for r in recipe.ratio)
    for i in range(_TRIES):
        area, ratio, x, y = u[4 * i : 4 * i + 4]
        area = width * height * (recipe.scale[0] + area * (recipe.scale[1] - recipe.scale[0]))
        ratio = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    return _largest_centred(width, height, *recipe.ratio)


def _largest_centred(
    width: int, height: int, low: float, high: float
) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the largest centred box with a ratio in [low, high]."""
    w, h = float(width), float(height)
    if w / h < low:
        h = w / low
    elif w / h > high:
        w = h * high
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h
