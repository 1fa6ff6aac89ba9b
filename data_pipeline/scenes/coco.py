"""Writes the annotations of COCO's layout: instances_train2017.json and instances_val2017.json.

Masks are run lengths that are not compressed ({"size": [height, width], "counts": [...]}), which
lose no pixel, as polygons would. A category's id is the class's index in ADE20k's layout. Where
emoji hide each other, the one with the greater id lies above. https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from data_pipeline.scenes import licence
from data_pipeline.scenes.chunks import SceneRecord
from data_pipeline.scenes.files import COCO, coco_file, coco_folder, coco_id
from data_pipeline.scenes.settings import SceneSettings, Split
from model.files import whole_file

_YEAR = 2017  # of the layout; the day on which scenes are made would change their bytes
_MOST_EMOJI = 100  # of a scene; an annotation's id is made of the scene's and its place in it


def instances_file(out: Path, split: Split) -> Path:
    return out / COCO / "annotations" / f"instances_{coco_folder(split)}.json"


def write_instances(
    out: Path,
    settings: SceneSettings,
    split: Split,
    records: Callable[[], Iterable[tuple[int, SceneRecord]]],
) -> None:
    """Write the JSON of a split, item by item, so that a set of any length fits into memory.

    records: reads (index, record) of the split's scenes, from the start each time. Raises OSError.
    """
    head = {
        "info": {
            "description": f"Composed scenes, {split}. {licence.ATTRIBUTION}",
            "url": "https://openmoji.org",
            "version": str(settings.format),
            "year": _YEAR,
            "contributor": "OpenMoji; composed by addp scenes",
            "date_created": f"{_YEAR}/01/01",
        },
        "licenses": [{"id": 1, "name": licence.NAME, "url": licence.URL}],
        "categories": [
            {"id": i, "name": name, "supercategory": "emoji"}
            for i, name in enumerate(settings.classes, 1)
        ],
    }
    with (
        whole_file(instances_file(out, split)) as partial,
        partial.open("w", encoding="ascii") as file,
    ):
        file.write(json.dumps(head)[:-1])
        images = (_image(settings, split, index) for index, _ in records())
        _write_list(file, "images", images)
        _write_list(file, "annotations", _annotations(settings, split, records()))
        file.write("}\n")


def _write_list(file: TextIO, key: str, items: Iterable[dict[str, Any]]) -> None:
    file.write(f', "{key}": [')
    for i, item in enumerate(items):
        file.write((",\n" if i else "\n") + json.dumps(item, separators=(",", ":")))
    file.write("]")


def _image(settings: SceneSettings, split: Split, index: int) -> dict[str, Any]:
    return {
        "id": coco_id(split, index),
        "file_name": coco_file(split, index),
        "width": settings.size,
        "height": settings.size,
        "license": 1,
    }


def _annotations(
    settings: SceneSettings, split: Split, records: Iterable[tuple[int, SceneRecord]]
) -> Iterator[dict[str, Any]]:
    for index, record in records:
        scene = coco_id(split, index)
        for place, annotation in enumerate(record.annotations):
            yield {
                "id": scene * _MOST_EMOJI + place,
                "image_id": scene,
                "category_id": annotation.label,
                "segmentation": {"size": [settings.size] * 2, "counts": annotation.runs},
                "area": annotation.area,
                "bbox": list(annotation.box),
                "iscrowd": 0,
                "emoji": annotation.emoji,
            }
