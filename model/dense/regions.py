"""Pooling of regions from a pyramid (RoIAlign, arXiv 1703.06870, as detectron2 has it: aligned, and
with as many samples in a cell as the region has places there).

torchvision's operator computes it where it loads. Elsewhere, as on CPUs beside a PyTorch without
CUDA, it is two products of matrices: the samples of a region form a grid, and so the mean of the
bilinear samples in each cell is a weighted sum over rows, and then over columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# maps (B, C, H, W), regions (K, 5), size, scale -> (K, C, size, size): see `pooled`
Pooling = Callable[[Tensor, Tensor, int, float], Tensor]


def pooled(maps: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """Pool regions to size x size cells: (K, C, size, size).

    maps: (B, C, H, W). regions: (K, 5), the number of a map, then x1, y1, x2, y2 within it, in
    pixels. scale: the maps' side over the pixels'.
    """
    with torch.autocast(maps.device.type, enabled=False):
        parts, order = [], []
        for number, image in enumerate(maps):
            of_image = (regions[:, 0] == number).nonzero().flatten()
            order.append(of_image)
            if len(of_image):
                parts.append(_of_image(image, regions[of_image, 1:] * scale, size))
        if not parts:
            return maps.new_zeros((0, maps.shape[1], size, size))
        return torch.cat(parts)[torch.cat(order).argsort()]


def _of_image(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """image: (C, H, W). boxes: (K, 4), in places of it -> (K, C, size, size)."""
    c, height, width = image.shape
    boxes = boxes - 0.5  # the middle of the first place is the origin
    rows = _weights(boxes[:, 1], boxes[:, 3], size, height).to(image.dtype)
    columns = _weights(boxes[:, 0], boxes[:, 2], size, width).to(image.dtype)
    of_rows = rows.flatten(0, 1) @ image.transpose(0, 1).reshape(height, c * width)
    cells = of_rows.view(len(boxes), size * c, width) @ columns.transpose(1, 2)
    return cells.view(len(boxes), size, c, size).transpose(1, 2)


def _weights(start: Tensor, end: Tensor, size: int, length: int) -> Tensor:
    """Return what each place of an axis counts in each cell: (K, size, length). start, end: (K,),
    of regions along this axis, in places."""
    cell = (end - start) / size
    samples = cell.ceil().clamp_min(1)
    number = torch.arange(int(samples.max()), device=start.device)
    # (K, size, samples): a sample lies in the middle of its share of the cell.
    within = (number + 0.5) / samples[:, None]
    cells = torch.arange(size, device=start.device)[None, :, None]
    at = start[:, None, None] + (cells + within[:, None]) * cell[:, None, None]
    places = torch.arange(length, device=start.device)
    hats = (1 - (at.clamp(0, length - 1)[..., None] - places).abs()).clamp_min(0)
    counted = (number < samples[:, None])[:, None, :, None]
    return (hats * counted).sum(2) / samples[:, None, None]


class RegionPool(nn.Module):
    """Pools each region from the map of a pyramid that fits its size (FPN, arXiv 1612.03144).

    size: cells of a side. names: of the maps, from the finest; the stride doubles from one to the
    next. stride: of the first, in pixels. canonical: the side of regions, in pixels, that are
    pooled from the third; each doubling is a map further. pooling: as `pooled`.
    """

    def __init__(
        self, size: int, names: Sequence[str], *, stride: float, canonical: float, pooling: Pooling
    ) -> None:
        super().__init__()
        self.size, self.names = size, tuple(names)
        self.stride, self.canonical, self.pooling = stride, canonical, pooling

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Return (K, C, size, size). maps: by name, (B, C, H, W). boxes: of each image, (K_i, 4)
        with sum K, float32, pixels. It computes in float32, and returns the maps' type."""
        regions = numbered(boxes)
        levels = self._levels(regions)
        order, parts = [], []
        for level, name in enumerate(self.names):
            of_level = (levels == level).nonzero().flatten()
            order.append(of_level)
            scale = 1 / (self.stride * 2**level)
            parts.append(self.pooling(maps[name].float(), regions[of_level], self.size, scale))
        dtype = maps[self.names[0]].dtype
        return torch.cat(parts)[torch.cat(order).argsort()].to(dtype)

    def _levels(self, regions: Tensor) -> Tensor:
        sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
        doublings = (sides / self.canonical).clamp_min(1e-8).log2()
        return (2 + doublings + 1e-6).floor().clamp(0, len(self.names) - 1)


def numbered(boxes: list[Tensor]) -> Tensor:
    """Return the boxes of all images, (K_i, 4) each, with their images' numbers: (K, 5)."""
    return torch.cat(
        [torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)]
    )


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks at the size of an image, (N, height, width) bool: where the bilinear sample at
    the middle of a pixel is at least one half (detectron2's `paste_masks_in_image`).

    masks: (N, m, m) probabilities within boxes. boxes: (N, 4), pixels.
    """
    height, width = size
    whole = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    y = torch.arange(height, device=masks.device) + 0.5
    x = torch.arange(width, device=masks.device) + 0.5
    for mask, (x1, y1, x2, y2), canvas in zip(masks, boxes, whole, strict=True):
        at_y = (y - y1) / (y2 - y1) * 2 - 1
        at_x = (x - x1) / (x2 - x1) * 2 - 1
        grid = torch.stack([at_x.expand(height, -1), at_y[:, None].expand(-1, width)], -1)[None]
        sampled = nn.functional.grid_sample(mask[None, None].float(), grid, align_corners=False)
        canvas.copy_(sampled[0, 0] >= 0.5)
    return whole
