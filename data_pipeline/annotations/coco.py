"""Reads a split of COCO, as it is distributed: `train2017/*.jpg` and
`annotations/instances_train2017.json`, in a folder, in tars, or on S3.

The JSON is read once, a window at a time (`json_stream.py`), and becomes a `CocoIndex`. What is
wrong in it has a stated outcome, and a count:

| what is wrong | outcome |
|---|---|
| an image's record lacks a field, its id stands twice, its file is missing | image left out |
| an annotation lacks a field, its id stands twice, or its image or class is not listed | left out |
| a box has no area, is no number, or lies outside of its image | annotation left out |
| a box reaches out of its image by over a pixel | counted; training takes the mask's own box |
| a polygon has fewer than three corners, or is no list of x and y | polygon left out |
| no polygon is left, or one lies more than the image's size away | annotation left out |
| an RLE does not decode, or has another size than its image | annotation left out |
| an annotation has no outline, although others have | annotation left out |

More of them than a share of all images, or annotations, is an error. So is a list of classes with
an id twice.
"""

from __future__ import annotations

import math
import posixpath
import re
from array import array
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from data_pipeline.annotations.coco_index import CocoIndex, Shapes
from data_pipeline.annotations.files import DataFiles, StoredFile, read_in_chunks
from data_pipeline.annotations.json_stream import array_elements
from data_pipeline.annotations.problems import Problems
from data_pipeline.annotations.run_lengths import parse_runs
from model.documents import show
from model.errors import DataError

FOLDER = "annotations"
_MOST_SIDE = 65_500  # pixels, of a JPEG's side
_FAR = 1.0  # pixels that a box may reach out of its image by rounding


def read_coco(
    url: str | Path, split: str, *, exact: bool = False, bad_limit: float = 0.01
) -> CocoIndex:
    """Read a split's annotations, and find its images.

    split: `train2017`, or `train` where the data have one year of it. exact: keep outlines in
    float64, as ground truth needs them; else in float32. bad_limit: share of the images, and of
    the annotations, that may be left out for faults. Raises DataError, StorageError.
    """
    files = DataFiles(url)
    root = files.root_of(FOLDER)
    name = _split_name(files, root, split)
    document = files.by_name[f"{root}{FOLDER}/instances_{name}.json"]
    where = f"{url}: {posixpath.basename(document.id)}"
    images, annotations = _Images(), _Annotations(exact)
    categories: dict[int, str] = {}
    for key, element in array_elements(read_in_chunks(files.store, document), where):
        if key == "images":
            images.add(element)
        elif key == "annotations":
            annotations.add(element)
        elif key == "categories":
            _add_category(categories, element, where)
    if not images.names or not categories:
        missing = "categories" if images.names else "images"
        raise DataError(f"{where} has no {missing}; this is no annotation file of COCO's instances")
    index = _joined(images, annotations, categories, files, f"{root}{name}/")
    index.image_problems.report(f"{where}, images", images.count, bad_limit)
    index.problems.report(f"{where}, annotations", annotations.count, bad_limit)
    return index


def _split_name(files: DataFiles, root: str, split: str) -> str:
    pattern = re.compile(
        rf"{re.escape(root)}{FOLDER}/instances_({re.escape(split)}(?:\d{{4}})?)\.json"
    )
    names = {match[1] for name in files.by_name if (match := pattern.fullmatch(name))}
    if split in names:
        return split
    if len(names) != 1:
        there = f"there are {', '.join(sorted(names))}; name one" if names else "check the split"
        raise DataError(f"{files.url} has no {FOLDER}/instances_{split}.json; {there}")
    return names.pop()


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and -(2**63) <= value < 2**63


def _are_sides(values: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) == 2
        and all(type(side) is int and 0 < side <= _MOST_SIDE for side in values)
    )


class _Fault(Exception):
    """Why an annotation is left out."""


class _Images:
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
        if not _are_sides(size) or not _is_id(fields.get("id")) or not isinstance(name, str):
            self.problems.add("record of an image without id, file_name, height or width", record)
            return
        self.ids.append(fields["id"])
        self.sizes.extend(size)
        self.names.append(name)


class _Annotations:
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
        if not all(map(_is_id, numbers)) or crowd not in (0, 1):
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


def _add_category(categories: dict[int, str], record: Any, where: str) -> None:
    fields = record if isinstance(record, dict) else {}
    number, name = fields.get("id"), fields.get("name")
    if not _is_id(number) or not isinstance(name, str) or number in categories:
        raise DataError(
            f"{where}: {show(record)} is no class with an id and a name of its own; labels would "
            "be ambiguous"
        )
    categories[number] = name


def _joined(
    images: _Images,
    annotations: _Annotations,
    categories: dict[int, str],
    files: DataFiles,
    folder: str,
) -> CocoIndex:
    """Bring images and annotations together, without those that do not belong."""
    image_ids, rows, found = _located(images, files, folder)
    sizes = np.array(images.sizes, np.int32).reshape(-1, 2)[rows]
    category_ids = np.array(sorted(categories), np.int64)
    boxes = np.array(annotations.boxes, np.float64).reshape(-1, 4)
    places, labels, keep = _kept(annotations, images, image_ids, sizes, category_ids, boxes)
    order = keep[np.argsort(places[keep], kind="stable")]
    outlined = np.array(annotations.outlined, bool)[order]
    return CocoIndex(
        classes=tuple(categories[number] for number in category_ids.tolist()),
        category_ids=category_ids,
        images=tuple(found),
        image_ids=image_ids,
        sizes=sizes,
        first=np.searchsorted(places[order], np.arange(len(found) + 1)).astype(np.int64),
        ids=np.array(annotations.ids, np.int64)[order],
        labels=labels[order],
        boxes=boxes[order],
        areas=np.array(annotations.areas, np.float64)[order],
        crowd=np.array(annotations.crowd, bool)[order],
        shape=order,
        shapes=_shapes(annotations) if outlined.any() else None,
        image_problems=images.problems,
        problems=annotations.problems,
    )


def _located(
    images: _Images, files: DataFiles, folder: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[StoredFile]]:
    """Return the ids of the images that are there, ascending; their places in the document; and
    their files."""
    all_ids = np.array(images.ids, np.int64)
    _, firsts = np.unique(all_ids, return_index=True)
    for row in np.setdiff1d(np.arange(len(all_ids)), firsts).tolist():
        images.problems.add("id of an image that stands twice", images.ids[row])
    rows, found = [], []
    for row in firsts.tolist():
        file = files.by_name.get(posixpath.normpath(folder + images.names[row]))
        if file is None:
            images.problems.add(f"image that is not in {folder}", images.names[row])
        else:
            rows.append(row)
            found.append(file._replace(id=images.names[row]))
    at = np.array(rows, np.int64)
    return all_ids[at], at, found


def _kept(
    annotations: _Annotations,
    images: _Images,
    image_ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    category_ids: NDArray[np.int64],
    boxes: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return for all annotations their images' rows and their labels, and which of them stay."""
    problems = annotations.problems
    ids = np.array(annotations.ids, np.int64)
    keep = np.ones(len(ids), bool)

    def leave_out(which: NDArray[np.bool_], reason: str, lost: bool = True) -> None:
        """Count those that are still there, and leave them out."""
        which = which & keep
        for number in ids[which].tolist():
            problems.add(reason, number, lost=lost)
        keep[which] = False

    of_images = np.array(annotations.images, np.int64)
    listed = np.isin(of_images, np.array(images.ids, np.int64))
    places, there = _looked_up(of_images, image_ids)
    labels, known = _looked_up(np.array(annotations.categories, np.int64), category_ids)
    twice = np.ones(len(ids), bool)
    twice[np.unique(ids, return_index=True)[1]] = False
    leave_out(twice, "id of an annotation that stands twice")
    leave_out(~listed, "annotation of an image that is not listed")
    leave_out(~there, "annotation of an image that is left out", lost=False)
    leave_out(~known, "annotation of a class that is not listed")
    if len(image_ids):
        high, wide = sizes[np.minimum(places, len(image_ids) - 1)].T.astype(np.float64)
        left, top = boxes[:, 0], boxes[:, 1]
        right, bottom = left + boxes[:, 2], top + boxes[:, 3]
        outside = (left >= wide) | (top >= high) | (right <= 0) | (bottom <= 0)
        leave_out(outside, "box outside of its image")
        size = np.array(annotations.rle_sizes, np.int32).reshape(-1, 2)
        other = (size[:, 0] > 0) & ((size[:, 0] != high) | (size[:, 1] != wide))
        leave_out(other, "RLE of another size than its image")
        x0, y0, x1, y1 = np.array(annotations.extents, np.float64).reshape(-1, 4).T
        far = (x0 < -wide) | (y0 < -high) | (x1 > 2 * wide) | (y1 > 2 * high)
        leave_out(far, "polygon far outside of its image")
        beyond = np.minimum(left, top) < -_FAR
        beyond |= (right > wide + _FAR) | (bottom > high + _FAR)
        for number in ids[beyond & keep].tolist():
            problems.add("box that reaches out of its image", number, lost=False)
    outlined = np.array(annotations.outlined, bool)
    if outlined[keep].any():
        leave_out(~outlined, "annotation without an outline, although others have one")
    return places, labels, np.flatnonzero(keep)


def _looked_up(
    values: NDArray[np.int64], ascending: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the place of each value among the ascending ones, and whether it is there."""
    places = np.searchsorted(ascending, values).astype(np.int64)
    there = places < len(ascending)
    there[there] = ascending[places[there]] == values[there]
    return places, there


def _shapes(annotations: _Annotations) -> Shapes:
    """The arrays as they lie; nothing is copied."""
    return Shapes(
        np.frombuffer(annotations.points, annotations.points.typecode),
        np.frombuffer(annotations.ring_first, np.int64),
        np.frombuffer(annotations.rings_of, np.int64),
        np.frombuffer(annotations.runs or array("I", [0]), np.uint32),
        np.frombuffer(annotations.runs_of, np.int64),
    )
