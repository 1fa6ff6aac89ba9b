"""Reads a split of COCO, as it is distributed: `train2017/*.jpg` and
`annotations/instances_train2017.json`, in a folder, in tars, or on S3.

The JSON is read once, a window at a time (`json_stream.py`), and becomes a `CocoIndex`. What is
wrong in it has a stated outcome, and a count:

| what is wrong | outcome |
|---|---|
| an image's record lacks a field, or its file is missing | image left out |
| an annotation lacks a field, or its image or class is not listed | annotation left out |
| an id stands twice | the record that comes later is left out |
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

import posixpath
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.annotations.coco_index import CocoIndex, Shapes
from data_pipeline.annotations.coco_records import AnnotationRecords, ImageRecords, is_id
from data_pipeline.annotations.files import DataFiles, StoredFile, read_in_chunks
from data_pipeline.annotations.json_stream import array_elements
from model.documents import show
from model.errors import DataError

FOLDER = "annotations"
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
    images, annotations = ImageRecords(), AnnotationRecords(exact)
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


def _add_category(categories: dict[int, str], record: Any, where: str) -> None:
    fields = record if isinstance(record, dict) else {}
    number, name = fields.get("id"), fields.get("name")
    if not is_id(number) or not isinstance(name, str) or not name or number in categories:
        raise DataError(
            f"{where}: {show(record)} is no class with an id and a name of its own; labels would "
            "be ambiguous"
        )
    categories[number] = name


def _joined(
    images: ImageRecords,
    annotations: AnnotationRecords,
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
    images: ImageRecords, files: DataFiles, folder: str
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
    annotations: AnnotationRecords,
    images: ImageRecords,
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


def _shapes(annotations: AnnotationRecords) -> Shapes:
    """The arrays as they lie; nothing is copied."""
    return Shapes(
        np.frombuffer(annotations.points, annotations.points.typecode),
        np.frombuffer(annotations.ring_first, np.int64),
        np.frombuffer(annotations.rings_of, np.int64),
        np.frombuffer(annotations.runs or array("I", [0]), np.uint32),
        np.frombuffer(annotations.runs_of, np.int64),
    )
