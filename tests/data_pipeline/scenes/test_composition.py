"""Scenes are painted again here, pixel by pixel, from what `compose` says of them."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
import resvg_py
from PIL import Image

from data_pipeline.scenes.backgrounds import KINDS, MOST_DRAWS, draw_background
from data_pipeline.scenes.composition import LEAST_PIXELS, LEAST_VISIBLE, Scene, compose
from data_pipeline.scenes.drawing import draw_emoji
from data_pipeline.scenes.draws import Draws
from data_pipeline.scenes.emoji import PARTS, cast_of, layers_of
from data_pipeline.scenes.settings import GROUPS, SPLITS, SceneSettings

SETTINGS = SceneSettings(training=8, validation=8, size=72, seed=3, classes=GROUPS)
scene = cache(compose)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(SETTINGS, split, index) for split in SPLITS for index in range(5)]


def test_each_pixel_belongs_to_the_topmost_emoji_there(scenes: list[Scene]) -> None:
    """So masks are disjoint, and together they are all pixels that an emoji painted."""
    hidden = 0
    for found in scenes:
        owner, parts = np.zeros_like(found.owner), np.zeros_like(found.parts)
        for number, one in enumerate(found.instances, 1):
            drawn = draw_emoji(layers_of(one.emoji.file), one.side, one.degrees, one.flipped)
            for (row, column), part in np.ndenumerate(drawn.parts):
                y, x = one.top + row, one.left + column
                if part and 0 <= y < SETTINGS.size and 0 <= x < SETTINGS.size:
                    hidden += owner[y, x] > 0
                    owner[y, x], parts[y, x] = number, part
        assert (owner == found.owner).all() and (parts == found.parts).all()
        assert ((parts > 0) == (owner > 0)).all() and parts.max() <= len(PARTS)
    assert hidden > 100, "hardly an emoji lies over another one"


def test_the_picture_shows_what_lies_on_top(scenes: list[Scene]) -> None:
    for index, found in enumerate(scenes[:5]):
        background = Draws(SETTINGS.seed, "background/training", index, MOST_DRAWS)
        kind, pixels = draw_background(SETTINGS.size, background)
        assert kind == found.background in KINDS
        touched = np.zeros(found.owner.shape, bool)
        for one in found.instances:
            drawn = draw_emoji(layers_of(one.emoji.file), one.side, one.degrees, one.flipped)
            for (row, column), opacity in np.ndenumerate(drawn.opacity):
                y, x = one.top + row, one.left + column
                if opacity and 0 <= y < SETTINGS.size and 0 <= x < SETTINGS.size:
                    touched[y, x] = True
                    pixels[y, x] = (1 - opacity) * pixels[y, x] + drawn.colour[row, column]
        assert np.abs(found.pixels - pixels).max() <= 0.51
        assert touched[found.owner > 0].all()


def test_every_emoji_of_a_scene_is_visible_enough(scenes: list[Scene]) -> None:
    for found in scenes:
        for number, one in enumerate(found.instances, 1):
            drawn = draw_emoji(layers_of(one.emoji.file), one.side, one.degrees, one.flipped)
            visible = (found.owner == number).sum()
            assert visible >= max(LEAST_PIXELS, LEAST_VISIBLE * (drawn.parts > 0).sum())


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    first = scene(SETTINGS, "training", 1)
    longer = SETTINGS.model_copy(update={"training": 900, "validation": 1})
    again = compose(longer, "training", 1)
    assert again.instances == first.instances and (again.pixels == first.pixels).all()
    others = [
        scene(SETTINGS, "training", 2),
        scene(SETTINGS, "validation", 1),
        compose(SETTINGS.model_copy(update={"seed": 4}), "training", 1),
    ]
    assert all((other.pixels != first.pixels).any() for other in others)


def test_emoji_and_classes_are_of_the_split_and_the_choice() -> None:
    few = SETTINGS.model_copy(update={"classes": ("flags", "food-drink")})
    for split in SPLITS:
        for index in range(3):
            for one in compose(few, split, index).instances:
                assert one.emoji.group == few.classes[one.label - 1]
                assert one.emoji in cast_of(split, few.classes)[one.label - 1]


@pytest.mark.parametrize("code", ["1F600", "1F469-200D-1F3EB", "1F1E7-1F1EA", "2705"])
def test_layers_together_are_the_emoji(code: str) -> None:
    cast = [e for split in SPLITS for group in cast_of(split, GROUPS) for e in group]
    (emoji,) = [e for e in cast if e.code == code]
    png = resvg_py.svg_to_bytes(svg_path=str(emoji.file), width=64, height=64)
    whole = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    upright = draw_emoji(layers_of(emoji.file), 64, 0, False)
    assert np.abs(whole[..., 3] - 255 * upright.opacity).max() <= 2
    premultiplied = whole[..., :3] * whole[..., 3:] / 255
    assert np.abs(premultiplied - upright.colour).max() <= 4
    assert ((upright.parts > 0) == (whole[..., 3] > 127)).mean() > 0.999

    mirrored = draw_emoji(layers_of(emoji.file), 64, 0, True)
    assert (mirrored.parts != upright.parts[:, ::-1]).mean() < 0.02
    turned = draw_emoji(layers_of(emoji.file), 64, 90, False)  # clockwise
    inner = (slice(8, 56), slice(8, 56))
    assert (turned.parts[:64, :64][inner] != np.rot90(upright.parts, -1)[inner]).mean() < 0.1


def test_parts_are_what_the_layers_say() -> None:
    emoji = next(e for e in cast_of("training", ("people-body",))[0] if e.code == "1F9D1")
    parts = draw_emoji(layers_of(emoji.file), 72, 0, False).parts
    shares = {name: (parts == i).mean() for i, name in enumerate(PARTS, 1)}
    assert min(shares["hair"], shares["skin"], shares["line"]) > 0.03
    # The face lies below the hair, and the line goes around both.
    middle = {name: np.argwhere(parts == i)[:, 0].mean() for i, name in enumerate(PARTS, 1)}
    assert middle["hair"] < middle["skin"]
