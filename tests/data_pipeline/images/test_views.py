from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import _random_box, make_view, resized_crop
from model.randomness import uniforms


def ramp(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_a_view_is_a_function_of_image_and_index() -> None:
    recipe, image = ViewRecipe(size=16), ramp(40, 30)
    first = make_view(image, "a/x.png", 3, recipe)
    assert first.shape == (16, 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, make_view(image, "a/x.png", 3, recipe))
    others = [make_view(image, "a/x.png", v, recipe) for v in (0, 1, 2)] + [
        make_view(image, "a/y.png", 3, recipe)
    ]
    assert all(not np.array_equal(first, other) for other in others)


def test_flips_happen_half_of_the_time() -> None:
    image = ramp(64, 64)
    left_to_right = [
        make_view(image, "x", v, ViewRecipe(size=8))[0, :, 0].astype(int) for v in range(400)
    ]
    assert 160 < sum(row[0] > row[-1] for row in left_to_right) < 240


def test_center_crop_is_centred() -> None:
    view = make_view(ramp(100, 50), "x", 0, ViewRecipe.center(10))
    assert abs(int(view[:, :, 0].mean()) - 127) <= 2 and abs(int(view[:, :, 1].mean()) - 127) <= 2
    assert view[0, 0, 0] > 60  # the sides are cut off


@pytest.mark.parametrize(
    ("size", "resized", "box"),  # by hand, of torchvision's Resize(256) and CenterCrop(256)
    [
        ((500, 375), (341, 256), (42, 0, 298, 256)),
        ((375, 500), (256, 341), (0, 42, 256, 298)),
        ((500, 333), (384, 256), (64, 0, 320, 256)),
        ((129, 100), (330, 256), (37, 0, 293, 256)),
        ((256, 300), (256, 300), (0, 22, 256, 278)),
    ],
)
def test_the_published_crop_is_torchvisions(
    size: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )
    expected = np.asarray(image.resize(resized, Image.Resampling.BILINEAR).crop(box))
    assert np.array_equal(resized_crop(image, 256), expected)


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), view=st.integers(0, 10_000))
def test_boxes_lie_inside_and_keep_their_law(width: int, height: int, view: int) -> None:
    recipe = ViewRecipe()
    left, top, right, bottom = _random_box(width, height, recipe, uniforms(0, "v", view, 1, 41)[0])
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    slack = 1 + 2 / min(w, h)  # sides are whole pixels
    if min(width, height) > 8 and width / height < 2 and height / width < 2:
        assert recipe.ratio[0] / slack <= w / h <= recipe.ratio[1] * slack
        assert w * h <= width * height
