"""Pooling, pasting and suppression beside plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.dense.regions import RegionPool, pasted, pooled
from model.dense.torchvision_parts import suppressed


def sample(image: Tensor, y: float, x: float) -> Tensor:
    """The bilinear sample of (C, H, W) at a place; beyond the edge it is the edge's."""
    y, x = (min(max(v, 0.0), n - 1.0) for v, n in zip((y, x), image.shape[1:], strict=True))
    top, left = math.floor(y), math.floor(x)
    result = torch.zeros(len(image), dtype=image.dtype)
    for i, down in ((top, 1 - (y - top)), (top + 1, y - top)):
        for j, right in ((left, 1 - (x - left)), (left + 1, x - left)):
            if down * right:
                result += down * right * image[:, i, j]
    return result


def by_loops(maps: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    result = torch.zeros(len(regions), maps.shape[1], size, size, dtype=maps.dtype)
    for k, (number, *box) in enumerate(regions.tolist()):
        x1, y1, x2, y2 = (v * scale - 0.5 for v in box)
        rows, columns = (max(1, math.ceil((b - a) / size)) for a, b in ((y1, y2), (x1, x2)))
        for p in range(size):
            for q in range(size):
                for i in range(rows):
                    for j in range(columns):
                        y = y1 + (p + (i + 0.5) / rows) * (y2 - y1) / size
                        x = x1 + (q + (j + 0.5) / columns) * (x2 - x1) / size
                        value = sample(maps[int(number)], y, x)
                        result[k, :, p, q] += value / (rows * columns)
    return result


REGIONS = torch.tensor(
    [
        [1, 3.0, 5.0, 40.5, 60.0],
        [0, 0.0, 0.0, 64.0, 48.0],  # the whole image
        [1, 30.0, 10.0, 30.5, 11.0],  # smaller than a place
        [0, 20.25, 7.5, 47.0, 30.0],
    ],
    dtype=torch.float64,
)


def test_pooling_equals_a_plain_loop() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    torch.testing.assert_close(pooled(maps, REGIONS, 3, 0.25), by_loops(maps, REGIONS, 3, 0.25))
    assert pooled(maps, REGIONS[:0], 3, 0.25).shape == (0, 3, 3, 3)


def test_a_region_is_pooled_from_the_map_that_fits() -> None:
    """Regions of 32 pixels and more from the third map, of stride 16; each doubling is a map."""
    maps = {f"p{i}": torch.full((2, 1, 8, 8), float(i)) for i in (2, 3, 4, 5)}
    pool = RegionPool(2, tuple(maps), stride=4, canonical=32, pooling=pooled)
    sides = [[40.0, 7.0, 15.9], [8.0, 16.0, 32.0, 63.9, 64.0, 128.0]]
    boxes = [torch.tensor([[0.0, 0.0, side, side] for side in of_image]) for of_image in sides]
    levels = pool(maps, boxes)[:, 0, 0, 0]
    assert levels.tolist() == [4, 2, 2, 2, 3, 4, 4, 5, 5]


def test_suppression_equals_its_definition() -> None:
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 30
    boxes = torch.cat([corners, corners + 1 + torch.rand(60, 2) * 20], 1)
    scores = (torch.rand(60) * 20).round() / 20  # some are equal
    kept: list[int] = []
    for i in sorted(range(60), key=lambda i: (-float(scores[i]), i)):
        overlaps = []
        for j in kept:
            low = torch.maximum(boxes[i, :2], boxes[j, :2])
            shared = (torch.minimum(boxes[i, 2:], boxes[j, 2:]) - low).clamp_min(0).prod()
            areas = [(boxes[k, 2:] - boxes[k, :2]).prod() for k in (i, j)]
            overlaps.append(shared / (sum(areas) - shared))
        if all(overlap <= 0.3 for overlap in overlaps):
            kept.append(i)
    assert suppressed(boxes, scores, 0.3).tolist() == kept
    assert 10 < len(kept) < 60


def test_a_mask_is_pasted_into_its_box() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1  # the upper half
    (whole,) = pasted(mask, torch.tensor([[8.0, 4.0, 24.0, 20.0]]), (32, 40))
    expected = torch.zeros(32, 40, dtype=torch.bool)
    expected[4:12, 8:24] = True
    # At the box's edges bilinear samples fall from 1 to 0, within half a cell of the mask.
    assert torch.equal(whole[6:20, 10:22], expected[6:20, 10:22])
    assert not whole[:4].any() and not whole[:, :8].any() and not whole[20:].any()
    assert whole[4:12, 8:24].float().mean() > 0.6
