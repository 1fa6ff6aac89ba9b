"""Paints masks and boxes, annotated or predicted, over an image, in the colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
_FADED = 0.35  # how much of the image shows beside its masks
_TINT = 0.62  # how much of a class's colour lies over its masks
_TURN = 0.618034  # of hues from one class to the next, so that no two come close soon
# Of the first classes: as far apart as nine colours can be.
_COLOURS: tuple[Colour, ...] = (
    (226, 50, 60),
    (142, 92, 50),
    (230, 180, 0),
    (70, 160, 30),
    (0, 165, 155),
    (245, 125, 20),
    (30, 105, 225),
    (125, 60, 190),
    (225, 60, 165),
)


class Thing(NamedTuple):
    """Something in an image. label: of its class, from 0. mask: bool (height, width) of the image.
    box: left, top, width and height in pixels; None for none, which is not drawn."""

    label: int
    mask: NDArray[np.bool_] | None
    box: tuple[float, float, float, float] | None = None


def colour_of(label: int) -> Colour:
    """Return the colour of a class. Any label has one, and the same in every image."""
    if label < len(_COLOURS):
        return _COLOURS[label]
    lightness, saturation = (0.42, 0.6)[label % 2], (0.75, 0.45)[label // 2 % 2]
    red, green, blue = colorsys.hls_to_rgb(label * _TURN % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def regions_of(labels: NDArray[np.integer]) -> list[Thing]:
    """Return the classes of a label map (height, width), each as a thing without a box. Negative
    labels are none."""
    return [Thing(label, labels == label) for label in np.unique(labels).tolist() if label >= 0]


def painted(image: Image.Image, size: tuple[int, int], things: Iterable[Thing]) -> Image.Image:
    """Return an RGB image, resized to the width and height of `size`, faded, with things over it.
    A later one lies over an earlier one."""
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = 255 - _FADED * (255 - grey.repeat(3, axis=2))
    things = list(things)
    for thing in things:
        if thing.mask is not None:
            mask = _resized(thing.mask, size)
            colour = np.array(colour_of(thing.label), np.float32)
            pixels[mask] = (1 - _TINT) * grey[mask] + _TINT * colour
            pixels[_outline(mask)] = colour * 0.6
    result = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(result)
    x, y = size[0] / image.width, size[1] / image.height
    for thing in things:
        if thing.box is not None:
            left, top, width, height = np.array(thing.box) * (x, y, x, y)
            right, bottom = left + max(width - 1, 0), top + max(height - 1, 0)
            draw.rectangle((left, top, right, bottom), outline=colour_of(thing.label), width=2)
    return result


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)) > 127


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside of it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
