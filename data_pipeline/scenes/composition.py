"""Composes a scene: several emoji of random size and turn, one over the other, on a background.

    background   <-   emoji 0   <-   emoji 1   <-   ...        each hides what lies below it

Every pixel belongs to the emoji on top there, or to the background. An emoji is put only where it
and all below it stay visible enough, so no scene shows an emoji that its annotations leave out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.scenes.backgrounds import MOST_DRAWS, draw_background
from data_pipeline.scenes.drawing import Drawn, draw_emoji
from data_pipeline.scenes.draws import Draws
from data_pipeline.scenes.emoji import Emoji, cast_of, layers_of
from data_pipeline.scenes.settings import SceneSettings, Split

FEWEST_EMOJI, MOST_EMOJI = 3, 8  # that a scene is drawn with
LEAST_VISIBLE = 0.35  # share of an emoji's pixels that no edge and no other emoji may hide
LEAST_PIXELS = 16  # of an emoji that are visible
_SIDES = (0.25, 0.65)  # of an emoji's square, in sides of the scene
_MIDDLE = (0.08, 0.92)  # where the middle of that square lies, in sides of the scene
_TURN = 35  # degrees at most, either way
_TRIES = 10  # places that are tried for an emoji; if none will do, the scene goes without it
_MOST_DRAWS = 1 + MOST_EMOJI * (5 + 2 * _TRIES)


class Instance(NamedTuple):
    """An emoji in a scene. label: its class, from 1 on. top, left: where its drawn square begins;
    parts of it may lie outside. side, degrees, flipped: as `draw_emoji` takes them."""

    emoji: Emoji
    label: int
    top: int
    left: int
    side: float
    degrees: float
    flipped: bool


class Scene(NamedTuple):
    """A composed scene of H x W pixels.

    pixels: (H, W, 3) uint8. owner: (H, W) int64, the number of the instance that shows, from 1 on,
    0 for the background. parts: (H, W) uint8, which part of it shows, 0 for the background.
    instances: from the lowest to the topmost. background: its kind.
    """

    pixels: NDArray[np.uint8]
    owner: NDArray[np.int64]
    parts: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    background: str


def compose(settings: SceneSettings, split: Split, index: int) -> Scene:
    """Compose a scene. It is a pure function of the seed, the split and the index, beside the size,
    the classes and the versions of the packages that draw."""
    size, seed = settings.size, settings.seed
    kind, canvas = draw_background(size, Draws(seed, f"background/{split}", index, MOST_DRAWS))
    draws = Draws(seed, f"scene/{split}", index, _MOST_DRAWS)
    cast = cast_of(split, settings.classes)
    owner = np.zeros((size, size), np.int64)
    parts = np.zeros((size, size), np.uint8)
    instances: list[Instance] = []
    whole = [0]  # pixels of each instance where nothing hides it, by its number
    for _ in range(draws.one_of(range(FEWEST_EMOJI, MOST_EMOJI + 1))):
        label = draws.one_of(range(1, len(cast) + 1))
        emoji = draws.one_of(cast[label - 1])
        side = draws.ratio(*_SIDES) * size
        degrees, flipped = draws.between(-_TURN, _TURN), draws.one_of((False, True))
        drawn = draw_emoji(layers_of(emoji.file), side, degrees, flipped)
        places = [
            (size * draws.between(*_MIDDLE), size * draws.between(*_MIDDLE)) for _ in range(_TRIES)
        ]
        area = int((drawn.parts > 0).sum())
        for y, x in places:
            top, left = (round(middle - len(drawn.parts) / 2) for middle in (y, x))
            covered = _on_canvas(drawn.parts, top, left, size)
            tried = np.where(covered > 0, len(whole), owner)
            if _all_visible(tried, [*whole, area]):
                instances.append(Instance(emoji, label, top, left, side, degrees, flipped))
                whole.append(area)
                owner, parts = tried, np.where(covered > 0, covered, parts)
                _paint(canvas, drawn, top, left)
                break
    pixels = np.rint(canvas).clip(0, 255).astype(np.uint8)
    return Scene(pixels, owner, parts, tuple(instances), kind)


def _all_visible(owner: NDArray[np.int64], whole: list[int]) -> bool:
    visible = np.bincount(owner.ravel(), minlength=len(whole))[1:]
    needed = np.maximum(LEAST_PIXELS, np.ceil(LEAST_VISIBLE * np.array(whole[1:])))
    return bool((visible >= needed).all())


def _overlap(side: int, top: int, left: int, size: int) -> tuple[tuple[slice, ...], ...]:
    """Where a square meets the canvas: as slices of the canvas, and of the square."""
    starts = [max(0, start) for start in (top, left)]
    ends = [max(0, min(size, start + side)) for start in (top, left)]
    on_canvas = tuple(slice(a, b) for a, b in zip(starts, ends, strict=True))
    in_square = tuple(
        slice(a - start, b - start) for a, b, start in zip(starts, ends, (top, left), strict=True)
    )
    return on_canvas, in_square


def _on_canvas(parts: NDArray[np.uint8], top: int, left: int, size: int) -> NDArray[np.uint8]:
    on_canvas, in_square = _overlap(len(parts), top, left, size)
    result = np.zeros((size, size), np.uint8)
    result[on_canvas] = parts[in_square]
    return result


def _paint(canvas: NDArray[np.float32], drawn: Drawn, top: int, left: int) -> None:
    on_canvas, in_square = _overlap(len(drawn.parts), top, left, len(canvas))
    below = canvas[on_canvas]
    canvas[on_canvas] = below * (1 - drawn.opacity[in_square])[..., None] + drawn.colour[in_square]
