"""The records of an annotation file of COCO, one by one, as growing arrays.

What can be seen from a record alone is checked here, and what needs the others in `coco.py`.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, TypeGuard

from data_pipeline.annotations.problems import Problems
from data_pipeline.annotations.run_lengths import parse_runs
from model.errors import DataError

_MOST_SIDE = 65_500  # pixels, of a JPEG's side


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def _are_sides(values: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) == 2
        and all(type(side) is int and 0 < side <= _MOST_SIDE for side in values)
    )


class _Fault(Exception):
    """Why an annotation is left out."""


class ImageRecords:
    """The records of images, in the order of the file. count: with those that are left out."""

    def __init__(self) -> None:
        self.ids, self.sizes = array("q"), array("i")
        self.names: list[str] = []
        self.problems = Problems()
        self.count = 0

    def add(self, record: Any) -> None:
        self.count += 1
        fields = record if isinstance(record, dict) else {}
        size = [fields.get("height"), fields.get("width")]
        name = fields.get("file_name")
        if not _are_sides(size) or not is_id(fields.get("id")) or not isinstance(name, str):
            self.problems.add("record of an image without id, file_name, height or width", record)
            return
        self.ids.append(fields["id"])
        self.sizes.extend(size)
        self.names.append(name)


class AnnotationRecords:
    """The annotations, in the order of the file, as growing arrays. count: with those that are left
    out."""

    def __init__(self, exact: bool) -> None:
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.rle_sizes, self.outlined = array("i"), array("b")
        self.extents = array("d")  # of each outline: left, top, right, bottom
        self.points = array("d" if exact else "f")
        self.ring_first, self.rings_of = array("q", [0]), array("q", [0])
        self.runs, self.runs_of = array("I"), array("q", [0])
        self.problems = Problems()
        self.count = 0

    def add(self, record: Any) -> None:
        self.count += 1
        try:
            self._add(record if isinstance(record, dict) else {})
        except _Fault as fault:
            named = isinstance(record, dict) and "id" in record
            self.problems.add(str(fault), record["id"] if named else record)

    def _add(self, record: dict[str, Any]) -> None:
        numbers = [record.get(key) for key in ("id", "image_id", "category_id")]
        crowd = record.get("iscrowd", 0)
        if not all(map(is_id, numbers)) or crowd not in (0, 1):
            raise _Fault("annotation without id, image_id, category_id, or iscrowd of 0 or 1")
        box = _numbers(record.get("bbox"))
        if box is None or len(box) != 4:
            raise _Fault("annotation without a box of four numbers")
        if not (box[2] > 0 and box[3] > 0):
            raise _Fault("box without area")
        area = _numbers([record.get("area", box[2] * box[3])])
        if area is None or area[0] < 0:
            raise _Fault("area that is no number")
        self._add_outline(record.get("segmentation"), numbers[0])
        self.ids.append(numbers[0])  # type: ignore[arg-type]
        self.images.append(numbers[1])  # type: ignore[arg-type]
        self.categories.append(numbers[2])  # type: ignore[arg-type]
        self.boxes.extend(box)
        self.areas.append(area[0])
        self.crowd.append(int(crowd))

    def _add_outline(self, outline: Any, number: Any) -> None:
        extent, size, runs = [0.0] * 4, (0, 0), None
        rings: list[list[float]] = []
        if isinstance(outline, dict):
            size, runs = _parsed_rle(outline)
        elif isinstance(outline, list) and outline:
            for ring in map(_numbers, outline):
                if ring is None or len(ring) < 6 or len(ring) % 2:
                    self.problems.add("polygon of fewer than three corners", number, lost=False)
                else:
                    rings.append(ring)
            if not rings:
                raise _Fault("segmentation without a polygon of three corners")
            extent = [
                extreme(extreme(ring[axis::2]) for ring in rings)
                for extreme in (min, max)
                for axis in (0, 1)
            ]
        elif outline not in (None, []):
            raise _Fault("segmentation that is neither polygons nor an RLE")
        for ring in rings:
            self.points.extend(ring)
            self.ring_first.append(len(self.points) // 2)
        self.rings_of.append(len(self.ring_first) - 1)
        self.runs.extend(runs or ())
        self.runs_of.append(len(self.runs))
        self.rle_sizes.extend(size)
        self.extents.extend(extent)
        self.outlined.append(bool(rings) or runs is not None)


def _numbers(values: Any) -> list[float] | None:
    """Return a list of finite numbers as it is, and None for anything else."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return None
    try:
        return values if math.isfinite(math.fsum(map(abs, values))) else None
    except (OverflowError, ValueError):
        return None


def _parsed_rle(outline: dict[str, Any]) -> tuple[tuple[int, int], list[int]]:
    size = outline.get("size")
    if not _are_sides(size):
        raise _Fault("RLE without a size")
    height, width = size
    try:
        runs = parse_runs(outline.get("counts"))
    except DataError as error:
        raise _Fault("RLE that does not decode") from error
    if sum(runs) != height * width:
        raise _Fault("RLE whose runs do not fill its size")
    return (height, width), runs
