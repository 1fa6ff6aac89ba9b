"""Boxes and masks go where the pixels go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.coco_index import Annotated, Rings, Runs
from data_pipeline.annotations.instances import Instances, placed
from data_pipeline.annotations.placement import PADDING, Placement, fitted
from data_pipeline.annotations.recipes import DetectionRecipe
from data_pipeline.annotations.run_lengths import parse_runs
from data_pipeline.annotations.scale_jitter import jitter

WIDTH, HEIGHT = 80, 60
SIDE = 64
RED = np.array([255, 0, 0])


def runs_of(mask: NDArray[np.bool_]) -> Runs:
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=2))
    return np.array(parse_runs(np.diff(edges, prepend=0).tolist()), np.uint32)


def annotated(box: tuple[int, int, int, int], shape: str) -> Annotated:
    """One red rectangle of an image, as a polygon, as runs, or as a box alone."""
    left, top, right, bottom = box
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    shapes: dict[str, list[Rings | Runs] | None] = {
        "polygon": [[np.array(corners, np.float32)]],
        "runs": [runs_of(mask)],
        "box": None,
    }
    return Annotated(
        5,
        HEIGHT,
        WIDTH,
        ids=np.array([9]),
        labels=np.array([1]),
        boxes=np.array([[left, top, right - left, bottom - top]], np.float64),
        areas=np.array([float((right - left) * (bottom - top))]),
        crowd=np.array([False]),
        shapes=shapes[shape],
    )


def picture(box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = (0, 0, 255)
    pixels[box[1] : box[3], box[0] : box[2]] = RED
    return Image.fromarray(pixels)


def shown(placement: Placement, image: Image.Image) -> NDArray[np.uint8]:
    return placement.padded(placement.cut(image, Image.Resampling.BILINEAR))


BOXES = st.tuples(
    st.integers(0, WIDTH - 16),
    st.integers(0, HEIGHT - 16),
    st.integers(12, WIDTH),
    st.integers(12, HEIGHT),
).map(lambda b: (b[0], b[1], min(WIDTH, b[0] + b[2]), min(HEIGHT, b[1] + b[3])))


@settings(max_examples=60)
@given(box=BOXES, index=st.integers(0, 10**6), shape=st.sampled_from(["polygon", "runs", "box"]))
def test_boxes_and_masks_follow_the_pixels(
    box: tuple[int, int, int, int], index: int, shape: str
) -> None:
    placement = jitter(WIDTH, HEIGHT, DetectionRecipe(size=SIDE), 3, index)
    pixels = shown(placement, picture(box))
    found = placed(annotated(box, shape), placement)
    assert pixels.shape == (3, SIDE, SIDE) and found.size == placement.seen
    high, wide = found.size
    padding = np.ones((SIDE, SIDE), bool)
    padding[:high, :wide] = False
    assert (pixels[:, padding] == np.array(PADDING)[:, None]).all()
    red = (pixels[0] > 128) & (pixels[2] < 128) & ~padding
    if not len(found.labels):
        assert red.sum() <= 2 * max(high, wide)  # a rim at most
        return
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) if len(rows) else None
    if seen is not None:
        assert np.abs(found.boxes[0] - seen).max() <= 1.5
    if shape != "box":
        check_masks(found)
        mask = found.masks()[0]
        rim = 2 * (high + wide) if seen is None else 2 * (seen[2:] - seen[:2] + 1).sum()
        assert np.count_nonzero(mask != red) <= rim
        assert not mask[padding].any()


def check_masks(found: Instances) -> None:
    for box, mask, area in zip(found.boxes, found.masks(), found.areas, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert area == mask.sum()


@given(index=st.integers(0, 10**6), width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_placements_keep_their_law(index: int, width: int, height: int) -> None:
    recipe = DetectionRecipe(size=1024)
    placement = jitter(width, height, recipe, 0, index)
    assert placement == jitter(width, height, recipe, 0, index)
    assert 102 <= max(placement.wide, placement.high) <= 2048
    ratio = width / height
    assert abs(placement.wide - ratio * placement.high) <= max(1, ratio)  # sides are whole pixels
    high, wide = placement.seen
    assert 0 < high <= 1024 and 0 < wide <= 1024
    left, top, right, bottom = placement.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    points = np.array([[0.0, 0.0], [width, height], [3.5, 2.25]])
    np.testing.assert_allclose(placement.restored(placement.moved(points)), points, atol=1e-6)


def test_scales_and_flips_are_spread() -> None:
    recipe = DetectionRecipe(size=1000)
    placements = [jitter(100, 80, recipe, 0, index) for index in range(400)]
    scales = np.array([placement.wide for placement in placements]) / 1000
    assert abs(scales.mean() - 1.05) < 0.1 and scales.min() < 0.15 and scales.max() > 1.95
    assert 160 < sum(placement.flipped for placement in placements) < 240
    assert placements != [jitter(100, 80, recipe, 1, index) for index in range(400)]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (10, 3), (1024, 1024)])
def test_evaluation_fits_the_longer_side(width: int, height: int) -> None:
    placement = fitted(width, height, 1024)
    assert max(placement.seen) == 1024 and not placement.flipped
    assert placement.seen[0] == int(1024 * height / max(width, height) + 0.5)
    assert placement.box == pytest.approx((0, 0, width, height))


def test_a_crowd_is_not_placed() -> None:
    found = annotated((10, 10, 30, 30), "polygon")._replace(crowd=np.array([True]))
    none = placed(found, fitted(WIDTH, HEIGHT, SIDE))
    assert none.boxes.shape == (0, 4) and none.masks().shape == (0, SIDE, SIDE)
    assert none.image_id == 5 and none.original_size == (HEIGHT, WIDTH)
