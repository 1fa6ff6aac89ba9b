"""Draws an emoji: its colours, where it covers what lies below, and which part shows where."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.scenes.emoji import Layer

_UNITS = 72  # side of the square that OpenMoji draws in


class Drawn(NamedTuple):
    """An emoji on nothing, in the smallest square that holds it however its content lies.

    colour: (S, S, 3) float32 in 0 to 255, multiplied by opacity. opacity: (S, S) float32 in 0 to 1.
    parts: (S, S) uint8, the part that shows most (see PARTS), 0 where the emoji is less than half
    opaque.
    """

    colour: NDArray[np.float32]
    opacity: NDArray[np.float32]
    parts: NDArray[np.uint8]


def draw_emoji(layers: tuple[Layer, ...], side: float, degrees: float, flipped: bool) -> Drawn:
    """Draw an emoji whose own square has a side of `side` pixels, turned clockwise by `degrees`
    after it was mirrored left to right or not."""
    turn = math.radians(degrees)
    square = math.ceil(side * (abs(math.cos(turn)) + abs(math.sin(turn))))
    scale = side / _UNITS
    place = (
        f"translate({square / 2:.4f} {square / 2:.4f}) rotate({degrees:.4f}) "
        f"scale({-scale if flipped else scale:.6f} {scale:.6f}) "
        f"translate({-_UNITS / 2:g} {-_UNITS / 2:g})"
    )
    colour = np.zeros((square, square, 3), np.float32)
    transparency = np.ones((square, square), np.float32)
    shares = np.zeros((1 + max(layer.part for layer in layers), square, square), np.float32)
    for layer in layers:
        pixels = _rendered(f'<g transform="{place}">{layer.body}</g>', square)
        opacity = pixels[..., 3] / np.float32(255)
        colour = colour * (1 - opacity)[..., None] + pixels[..., :3] * opacity[..., None]
        transparency = transparency * (1 - opacity)
        shares *= 1 - opacity  # what this layer leaves of those below it
        shares[layer.part] += opacity
    parts = shares.argmax(axis=0).astype(np.uint8)
    parts[transparency > 0.5] = 0
    return Drawn(colour, 1 - transparency, parts)


def _rendered(body: str, square: int) -> NDArray[np.float32]:
    """Return the pixels (S, S, 4) in 0 to 255, colours not multiplied by opacity."""
    import resvg_py

    document = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{square}" height="{square}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=document, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGBA"), np.float32)
