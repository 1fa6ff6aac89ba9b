"""Crops of an image and its label map, for training; the resized image, for evaluation.

Images are resized bilinearly with antialiasing, labels take the nearest pixel. What a crop has
beyond the image is filled with ImageNet's mean colour and the label `IGNORE`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.photometric import DRAWS, distort
from data_pipeline.annotations.placement import Placement
from data_pipeline.annotations.recipes import SegmentationRecipe
from model.randomness import uniforms

IGNORE = 255  # the label of pixels that count for nothing
_TRIES = 10  # crops after the first one, as in mmsegmentation


def random_crop(
    image: Image.Image, labels: NDArray[np.uint8], recipe: SegmentationRecipe, seed: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crop an RGB image and its label map (height, width), and return uint8 (3, size, size) and
    uint8 (size, size).

    index: the global sample index; with the seed it determines all that is drawn. A crop in which
    one class has too large a share of the labelled pixels, or all, is drawn again, up to ten times.
    """
    u = uniforms(seed, "segmentation-crop", index, 1, 2 + 2 * (1 + _TRIES) + DRAWS)[0]
    scale = recipe.scale[0] + u[0] * (recipe.scale[1] - recipe.scale[0])
    wide, high = _size(image, int(recipe.short_side * scale), int(recipe.long_side * scale))
    resized = _resized(labels, wide, high)
    left, top = _corner(resized, recipe, u[2 : 4 + 2 * _TRIES].reshape(-1, 2))
    side = recipe.size
    seen = resized[top : top + side, left : left + side]
    cut = Placement(*image.size, wide, high, left, top, side, flipped=False)
    picture = cut.cut(image, Image.Resampling.BILINEAR)
    if u[1] < recipe.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        seen = seen[:, ::-1]
    if recipe.photometric:
        picture = distort(picture, u[-DRAWS:])
    target = np.full((side, side), IGNORE, np.uint8)
    target[: seen.shape[0], : seen.shape[1]] = seen
    return cut.padded(picture), target


def resized_for_evaluation(image: Image.Image, recipe: SegmentationRecipe) -> NDArray[np.uint8]:
    """Return an image with its shorter side resized, and no longer side above the recipe's: uint8
    (3, high, wide). Its labels are compared at their own size."""
    wide, high = _size(image, recipe.short_side, recipe.long_side)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _size(image: Image.Image, short: int, long: int) -> tuple[int, int]:
    """Return the width and height that fit into short and long, of the image's ratio."""
    factor = min(short / min(image.size), long / max(image.size))
    wide, high = (max(1, int(length * factor + 0.5)) for length in image.size)
    return wide, high


def _resized(labels: NDArray[np.uint8], wide: int, high: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(labels).resize((wide, high), Image.Resampling.NEAREST))


def _corner(
    labels: NDArray[np.uint8], recipe: SegmentationRecipe, draws: NDArray[np.float64]
) -> tuple[int, int]:
    """Return left and top of the first crop that shows several classes in the shares that are
    allowed, or of the last one."""
    room = [max(0, length - recipe.size) for length in labels.shape]
    left = top = 0
    for x, y in draws:
        top, left = int(y * (room[0] + 1)), int(x * (room[1] + 1))
        crop = labels[top : top + recipe.size, left : left + recipe.size]
        counts = np.bincount(crop.ravel(), minlength=IGNORE + 1)[:IGNORE]
        mixed = np.count_nonzero(counts) > 1
        if recipe.most_of_one_class == 1 or (
            mixed and counts.max() < recipe.most_of_one_class * counts.sum()
        ):
            break
    return left, top
