"""The annotations of a split of COCO as flat arrays, which a rank 0 can send to all ranks.

Annotations of an image follow each other. What outlines them stays in the order of the file, and is
found by `shape`, so that it is never sorted: of COCO's 118,287 training images it is most of the
bytes.

    images       0        1  2              N images, by ascending id
    first        0        3  3        7     N + 1
    ids, ...     a  b  c     d  e  f  g     A annotations
    shape        5  0  3     1  ...         A numbers of shapes
    shapes       rings of polygons: points[2 ring_first[r] : 2 ring_first[r + 1]], or runs of an RLE
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.annotations.files import StoredFile
from data_pipeline.annotations.problems import Problems

Rings = list[NDArray[np.floating[Any]]]  # the corners of polygons, each (K, 2) as x and y in pixels
Runs = NDArray[np.uint32]  # of an RLE, down the columns, the first one off


class Shapes(NamedTuple):
    """S shapes. Each has rings, rings_of[s] .. rings_of[s + 1] - 1, or runs, in the same way.

    points: float (2 P,), x and y by turns. ring_first: (R + 1,), in points.
    """

    points: NDArray[np.floating[Any]]
    ring_first: NDArray[np.int64]
    rings_of: NDArray[np.int64]
    runs: NDArray[np.uint32]
    runs_of: NDArray[np.int64]

    def shape(self, number: int) -> Rings | Runs:
        """Return a shape: its runs if it has some, else its rings."""
        begin, end = self.runs_of[number : number + 2]
        if end > begin:
            return self.runs[begin:end]
        bounds = self.ring_first[self.rings_of[number] : self.rings_of[number + 1] + 1]
        return [
            self.points[2 * begin : 2 * end].reshape(-1, 2)
            for begin, end in itertools.pairwise(bounds)
        ]


class Annotated(NamedTuple):
    """The n annotations of an image, in the coordinates of the image as it is stored.

    image_id: the file's. height, width: of the image, in pixels. ids: int64 (n,), the file's.
    labels: int64 (n,), from 0. boxes: float64 (n, 4), left, top, width, height in pixels, as the
    file has them. areas: float64 (n,), in pixels. crowd: bool (n,), whether it outlines a group.
    shapes: the outlines; None in data that have boxes alone.
    """

    image_id: int
    height: int
    width: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    shapes: list[Rings | Runs] | None

    def without_crowds(self) -> Annotated:
        """Return the annotations of single things."""
        keep = np.flatnonzero(~self.crowd)
        return self._replace(
            ids=self.ids[keep],
            labels=self.labels[keep],
            boxes=self.boxes[keep],
            areas=self.areas[keep],
            crowd=self.crowd[keep],
            shapes=None if self.shapes is None else [self.shapes[i] for i in keep],
        )


@dataclass(frozen=True)
class CocoIndex:
    """A split's images and annotations; the module draws how they lie.

    classes: names in the order of labels. category_ids: int64 (C,), the file's, ascending. images:
    N files. image_ids: int64 (N,), ascending. sizes: int32 (N, 2), height and width. ids .. shape:
    see `Annotated`. shapes: None in data that have boxes alone. image_problems, problems: what was
    wrong with images, and with annotations.
    """

    classes: tuple[str, ...]
    category_ids: NDArray[np.int64]
    images: tuple[StoredFile, ...]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    first: NDArray[np.int64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    shape: NDArray[np.int64]
    shapes: Shapes | None
    image_problems: Problems
    problems: Problems

    def annotated(self, row: int) -> Annotated:
        """Return the annotations of an image. row: its place in `images`."""
        at = slice(int(self.first[row]), int(self.first[row + 1]))
        height, width = map(int, self.sizes[row])
        shapes = None
        if self.shapes is not None:
            shapes = [self.shapes.shape(int(number)) for number in self.shape[at]]
        return Annotated(
            int(self.image_ids[row]),
            height,
            width,
            self.ids[at],
            self.labels[at],
            self.boxes[at],
            self.areas[at],
            self.crowd[at],
            shapes,
        )

    def rows_with_instances(self) -> NDArray[np.int64]:
        """Return the images that show at least one single thing, ascending. Training reads these,
        as detectron2's does; evaluation reads all."""
        singles = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.flatnonzero(np.diff(singles[self.first]) > 0)

    def fingerprint(self) -> str:
        """Return a hash of what a run learns from, wherever the files lie."""
        digest = hashlib.sha256(json.dumps([self.classes, [i.id for i in self.images]]).encode())
        arrays = [self.sizes, self.first, self.ids, self.labels, self.boxes, self.crowd]
        if self.shapes is not None:
            arrays += [self.shape, *self.shapes]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def ground_truth(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Return these images and their annotations as a document of COCO's own form, as
        pycocotools takes it. Its numbers are the file's where the index was read with `exact`."""
        images, annotations = [], []
        for row in map(int, rows):
            found = self.annotated(row)
            height, width = found.height, found.width
            images.append({"id": found.image_id, "height": height, "width": width})
            for i, box in enumerate(found.boxes.tolist()):
                annotation: dict[str, Any] = {
                    "id": int(found.ids[i]),
                    "image_id": found.image_id,
                    "category_id": int(self.category_ids[found.labels[i]]),
                    "bbox": box,
                    "area": float(found.areas[i]),
                    "iscrowd": int(found.crowd[i]),
                }
                if found.shapes is not None:
                    annotation["segmentation"] = _written(found.shapes[i], height, width)
                annotations.append(annotation)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids.tolist(), self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def _written(shape: Rings | Runs, height: int, width: int) -> Any:
    if isinstance(shape, list):
        return [ring.ravel().tolist() for ring in shape]
    return {"size": [height, width], "counts": shape.tolist()}
