"""What a detector learns of an image: boxes, classes and masks, in the square that it sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.coco_index import Annotated, Rings, Runs
from data_pipeline.annotations.placement import Placement
from data_pipeline.annotations.pycoco import mask_of_rings
from data_pipeline.annotations.run_lengths import mask_of_runs

_NO_AREA = 1e-5  # pixels: a side of a box that is not above it shows nothing


class Instances(NamedTuple):
    """The n things that are seen in a square of side S. None of them is a crowd.

    image_id: the file's. original_size: height and width of the stored image. size: height and
    width of the part of the square, at its upper left, that shows the image. boxes: float32 (n, 4),
    left, top, right, bottom in pixels; where there are masks, they are the masks' own. labels:
    int64 (n,). packed: the masks, uint8 (n, S, ceil(S / 8)), eight pixels a byte, see `masks`; None
    in data that have boxes alone. areas: float32 (n,), of what is seen, in pixels. ids: int64 (n,),
    the file's ids of the annotations.
    """

    image_id: int
    original_size: tuple[int, int]
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    packed: NDArray[np.uint8] | None
    areas: NDArray[np.float32]
    ids: NDArray[np.int64]

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks, bool (n, S, S)."""
        assert self.packed is not None
        side = self.packed.shape[1]
        return np.unpackbits(self.packed, axis=-1, count=side).view(np.bool_)


def placed(annotated: Annotated, placement: Placement) -> Instances:
    """Place an image's single things. Those of which nothing is seen are left out, as in
    detectron2, and so are crowds.

    Raises ConfigError where there are polygons and pycocotools is not installed.
    """
    annotated = annotated.without_crowds()
    if annotated.shapes is None:
        packed, boxes = None, _moved_boxes(annotated.boxes, placement)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas, keep = sides.prod(1), (sides > _NO_AREA).all(1)
    else:
        packed, boxes, areas = _moved_masks(annotated.shapes, placement)
        keep = areas > 0
        packed = packed[keep]
    return Instances(
        image_id=annotated.image_id,
        original_size=(annotated.height, annotated.width),
        size=placement.seen,
        boxes=boxes[keep].astype(np.float32),
        labels=annotated.labels[keep],
        packed=packed,
        areas=areas[keep].astype(np.float32),
        ids=annotated.ids[keep],
    )


def _moved_boxes(boxes: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    """boxes: (n, 4), left, top, width, height. Returns (n, 4), left, top, right, bottom, cut to
    what is seen."""
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = np.sort(placement.moved(corners), axis=1)  # a flip exchanges left and right
    high, wide = placement.seen
    return corners.clip(0, (wide, high)).reshape(-1, 4)


def _moved_masks(
    shapes: list[Rings | Runs], placement: Placement
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """Return the packed masks, their boxes and their areas, all 0 where nothing is seen."""
    side = placement.side
    packed = np.zeros((len(shapes), side, -(-side // 8)), np.uint8)
    boxes, areas = np.zeros((len(shapes), 4)), np.zeros(len(shapes))
    for i, shape in enumerate(shapes):
        mask = _moved_mask(shape, placement)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            areas[i] = np.count_nonzero(mask)
            bits = np.packbits(mask, axis=1)
            packed[i, : bits.shape[0], : bits.shape[1]] = bits
    return packed, boxes, areas


def _moved_mask(shape: Rings | Runs, placement: Placement) -> NDArray[np.uint8]:
    """Return the mask in the part of the square that shows the image. Polygons are moved and then
    drawn, so that their edges stay sharp at any scale."""
    if isinstance(shape, list):
        return mask_of_rings([placement.moved(ring) for ring in shape], *placement.seen)
    stored = mask_of_runs(shape, placement.height, placement.width)
    return np.asarray(placement.cut(Image.fromarray(stored), Image.Resampling.NEAREST))
