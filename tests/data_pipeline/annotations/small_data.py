"""Small annotated data, in the layouts of ADE20k and COCO, as names and bytes."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = np.array([(230, 30, 30), (30, 200, 40), (40, 60, 220), (90, 90, 90)], np.uint8)
CLASS_LIST = """Idx\tRatio\tTrain\tVal\tName
1\t0.2\t3\t1\twall, panel
2 \t0.1\t2\t1\tsky
3\t0.1\t2\t1\tsea \n"""


def png(pixels: NDArray[np.uint8], palette: bool = False) -> bytes:
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(COLORS.ravel().tolist() * 64)
    image.save(data, "PNG")
    return data.getvalue()


def regions(height: int, width: int) -> NDArray[np.uint8]:
    """Values 0 to 3 in four rectangles of unequal size."""
    values = np.zeros((height, width), np.uint8)
    values[: height // 3, width // 4 :] = 1
    values[height // 3 :, : width // 4] = 2
    values[height // 3 :, width // 4 :] = 3
    return values


def challenge(images: int = 6) -> dict[str, bytes]:
    """ADEChallengeData2016 with three classes, all training; image i is i pixels wider."""
    files = {"objectInfo150.txt": CLASS_LIST.encode()}
    for i in range(images):
        values = regions(40, 60 + i)
        files[f"images/training/ADE_train_{i:08d}.png"] = png(COLORS[values])
        files[f"annotations/training/ADE_train_{i:08d}.png"] = png(values)
    return files


def coco(images: int = 4) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The image files of `train2017`, and the document of their annotations.

    Each image shows a triangle, a rectangle of two polygons and a crowd; the classes are 3 and 7.
    """
    files: dict[str, bytes] = {}
    document: dict[str, Any] = {"info": {"year": 2017}, "images": [], "annotations": []}
    for i in range(images):
        width, height = 64 + i, 48
        pixels = np.full((height, width, 3), 200, np.uint8)
        files[f"train2017/{i:012d}.png"] = png(pixels)
        record = {"id": 100 - i, "file_name": f"{i:012d}.png", "width": width, "height": height}
        document["images"].append(record)
        crowd = [4 * height, 2 * height, (width - 6) * height]
        document["annotations"] += [
            annotation(10 * i, 100 - i, 7, [[4.25, 3.5, 30.1, 5.7, 12.3, 20.9]]),
            annotation(
                10 * i + 1, 100 - i, 3, [[40, 10, 50, 10, 50, 30, 40, 30], [52, 8, 60, 8, 60, 12]]
            ),
            annotation(
                10 * i + 2,
                100 - i,
                3,
                {"size": [height, width], "counts": crowd},
                box=[4, 0, 2, height],
                crowd=1,
            ),
        ]
    document["categories"] = [{"id": 7, "name": "kite"}, {"id": 3, "name": "car"}]
    return files, document


def annotation(
    number: int,
    image: int,
    category: int,
    outline: Any,
    box: list[float] | None = None,
    crowd: int = 0,
) -> dict[str, Any]:
    if box is None:
        xs, ys = ([c for ring in outline for c in ring[axis::2]] for axis in (0, 1))
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {
        "segmentation": outline,
        "area": box[2] * box[3] / 2,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": box,
        "category_id": category,
        "id": number,
    }


def with_document(files: Mapping[str, bytes], document: dict[str, Any]) -> dict[str, bytes]:
    content = json.dumps(document).encode()
    return {**files, "annotations/instances_train2017.json": content}


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The document with other fields in its second annotation; None removes one."""
    document = copy.deepcopy(document)
    record = document["annotations"][1]
    for key, value in fields.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return document


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
