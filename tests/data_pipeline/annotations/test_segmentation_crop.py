from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.photometric import DRAWS, distort
from data_pipeline.annotations.placement import PADDING
from data_pipeline.annotations.recipes import SegmentationRecipe
from data_pipeline.annotations.segmentation_crop import IGNORE, random_crop, resized_for_evaluation
from tests.data_pipeline.annotations.small_data import COLORS, regions

RECIPE = SegmentationRecipe(size=48, short_side=48, long_side=192, photometric=False)


def crop(
    values: NDArray[np.uint8], recipe: SegmentationRecipe = RECIPE, index: int = 0, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return random_crop(Image.fromarray(COLORS[np.minimum(values, 3)]), values, recipe, seed, index)


@settings(max_examples=40)
@given(index=st.integers(0, 10**6), width=st.integers(40, 150), height=st.integers(40, 150))
def test_labels_follow_the_pixels(index: int, width: int, height: int) -> None:
    """Away from the borders of regions, where pixels are mixed, each has the colour of its
    label."""
    image, labels = crop(regions(height, width), index=index)
    assert image.shape == (3, 48, 48) and labels.shape == (48, 48)
    padding = labels == IGNORE
    assert (image[:, padding] == np.array(PADDING)[:, None]).all()
    colors = COLORS[np.where(padding, 0, labels)].transpose(2, 0, 1).astype(int)
    wrong = (np.abs(colors - image) > 3).any(0) & ~padding
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(labels, 5, mode="edge"), (11, 11))
    uniform = windows.min((2, 3)) == windows.max((2, 3))
    assert not (wrong & uniform).any()
    again = crop(regions(height, width), index=index)
    assert np.array_equal(again[0], image) and np.array_equal(again[1], labels)


def test_crops_differ_by_sample_and_seed_and_half_are_flipped() -> None:
    values = regions(60, 80)
    crops = {crop(values, index=index)[1].tobytes() for index in range(20)}
    assert len(crops) > 15
    assert crop(values, seed=1)[1].tobytes() != crop(values, seed=0)[1].tobytes()
    whole = RECIPE.model_copy(update={"size": 96, "scale": (1.0, 1.0), "long_side": 96})
    ramp = np.zeros((48, 96), np.uint8)
    ramp[:, 48:] = 1
    flips = sum(int(crop(ramp, whole, index)[1][0, 0]) for index in range(200))
    assert 70 < flips < 130


def test_one_class_takes_no_more_than_its_share_where_that_is_possible() -> None:
    values = np.zeros((200, 200), np.uint8)
    values[60:140, 60:140] = 1
    values[:, :20] = IGNORE
    recipe = RECIPE.model_copy(update={"short_side": 200, "long_side": 400, "scale": (1.0, 1.0)})
    free = recipe.model_copy(update={"most_of_one_class": 1.0})

    def shares(recipe: SegmentationRecipe) -> NDArray[np.float64]:
        counts = [
            np.bincount(crop(values, recipe, index)[1].ravel(), minlength=256)[:2]
            for index in range(100)
        ]
        return np.array([count.max() / max(1, count.sum()) for count in counts])

    assert (shares(free) >= 0.75).mean() > 0.4
    assert (shares(recipe) >= 0.75).mean() < 0.05
    alone = np.zeros((200, 200), np.uint8)
    assert (crop(alone, recipe)[1] == 0).all()  # where it is not, the last try counts


@pytest.mark.parametrize(
    ("size", "expected"),
    [((683, 512), (683, 512)), ((300, 200), (768, 512)), ((900, 100), (2048, 228))],
)
def test_evaluation_resizes_the_shorter_side(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = resized_for_evaluation(Image.new("RGB", size), SegmentationRecipe())
    assert image.shape == (3, expected[1], expected[0]) and image.flags.c_contiguous


def test_photometric_changes() -> None:
    """By hand, for a single colour; and nothing where nothing is drawn."""
    image = Image.new("RGB", (2, 2), (100, 150, 50))

    def changed(on: tuple[int, ...], **values: float) -> tuple[int, ...]:
        u = np.full(DRAWS, 0.5)
        u[:4] = [0.1 if number in on else 0.9 for number in range(4)]
        for place, value in values.items():
            u[int(place[1:])] = value
        return tuple(np.asarray(distort(image, u))[0, 0].tolist())

    assert changed(()) == (100, 150, 50)
    assert changed((0,), u4=0.75) == (116, 166, 66)  # +16
    assert changed((1,), u5=0.75) == (125, 187, 62)  # x1.25
    assert changed((0, 1), u4=1.0, u5=1.0) == (198, 255, 123)
    hue, saturation, value = colorsys.rgb_to_hsv(*changed((2,), u6=0.0))
    assert abs(saturation - 1 / 3) < 0.02 and value == 150
    turned = colorsys.rgb_to_hsv(*changed((3,), u7=1.0))[0]
    assert abs(turned - colorsys.rgb_to_hsv(100, 150, 50)[0] - 0.1) < 0.01
    assert abs(hue - colorsys.rgb_to_hsv(100, 150, 50)[0]) < 0.01


def test_photometric_changes_are_drawn_by_sample() -> None:
    recipe = RECIPE.model_copy(update={"photometric": True})
    values = regions(60, 80)
    plain, changed = crop(values)[0], crop(values, recipe)[0]
    assert np.array_equal(crop(values)[1], crop(values, recipe)[1])
    colors = {crop(values, recipe, index)[0][:, 24, 24].tobytes() for index in range(16)}
    assert len(colors) > 10 and not np.array_equal(plain, changed)


def test_recipes_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="the lower end comes first"):
        SegmentationRecipe(scale=(2.0, 0.5))
    with pytest.raises(ValueError, match="less than short_side"):
        SegmentationRecipe(short_side=512, long_side=400)
