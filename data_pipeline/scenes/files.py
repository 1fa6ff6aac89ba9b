"""The files of a set of scenes, and how one scene becomes pictures and label maps.

OUT/
  scenes.json                    the settings (settings.py)
  LICENSE.txt                    whose emoji these are, and what may be done with the scenes
  contact-sheet.png              some scenes, with boxes and masks drawn over them
  ade20k/                        as ADEChallengeData2016
    images/training/ADE_train_00000001.jpg, images/validation/ADE_val_00000001.jpg
    annotations/...              ADE_train_00000001.png: the class of each pixel
    annotations_parts/...        ADE_train_00000001.png: the part of each pixel
    objectInfo150.txt, sceneCategories.txt, partInfo.txt
  coco/                          as COCO 2017, with the same pictures by hard links
    train2017/000000000001.jpg, val2017/000001000001.jpg
    annotations/instances_train2017.json, instances_val2017.json
  records/training-00000.json    what was written for the first scenes (chunks.py)
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.scenes.composition import Scene
from data_pipeline.scenes.settings import MOST_SCENES, Split
from model.documents import MIB, read_file
from model.errors import DataError
from model.files import whole_file, write_atomically

ADE20K, COCO = "ade20k", "coco"
_QUALITY = 95  # of the JPEG files
_LARGEST = 64 * MIB  # of a file; the picture of the largest scene has less
_ADE20K_NAME = {"training": "ADE_train", "validation": "ADE_val"}
_COCO_NAME = {"training": "train2017", "validation": "val2017"}


def ade20k_name(split: Split, index: int) -> str:
    """Return the name of a scene in ADE20k's layout, without a suffix."""
    return f"{_ADE20K_NAME[split]}_{index + 1:08d}"


def coco_id(split: Split, index: int) -> int:
    """Return the id of a scene in COCO's layout. No two scenes of a set share one."""
    return index + 1 + (MOST_SCENES if split == "validation" else 0)


def coco_folder(split: Split) -> str:
    return _COCO_NAME[split]


def coco_file(split: Split, index: int) -> str:
    return f"{coco_id(split, index):012d}.jpg"


def files_of(split: Split, index: int) -> dict[str, str]:
    """Return the names below OUT of a scene's files: picture, labels, parts, copy."""
    name = ade20k_name(split, index)
    return {
        "picture": f"{ADE20K}/images/{split}/{name}.jpg",
        "labels": f"{ADE20K}/annotations/{split}/{name}.png",
        "parts": f"{ADE20K}/annotations_parts/{split}/{name}.png",
        "copy": f"{COCO}/{coco_folder(split)}/{coco_file(split, index)}",
    }


def background_label(classes: tuple[str, ...]) -> int:
    """Return the label of the background in label maps; 0 is ADE20k's "other", which no network
    learns."""
    return len(classes) + 1


def label_map(scene: Scene, classes: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return the class of each pixel (H, W)."""
    labels = [background_label(classes), *(instance.label for instance in scene.instances)]
    return np.array(labels, np.uint8)[scene.owner]


def write_scene(
    out: Path, split: Split, index: int, scene: Scene, classes: tuple[str, ...]
) -> dict[str, str]:
    """Write the files of a scene, and return their checksums by kind. Raises OSError."""
    names = files_of(split, index)
    contents = {
        "picture": _jpeg(scene.pixels),
        "labels": _png(label_map(scene, classes)),
        "parts": _png(scene.parts),
    }
    for kind, content in contents.items():
        # A checksum tells a file that a power cut has damaged, so none need wait for the disk.
        write_atomically(out / names[kind], content, durable=False)
    _link(out / names["picture"], out / names["copy"])
    return {kind: checksum(content) for kind, content in contents.items()}


def is_whole(out: Path, split: Split, index: int, checksums: dict[str, str]) -> bool:
    """Whether all files of a scene are there, and hold what was written."""
    for kind, name in files_of(split, index).items():
        try:
            content = read_file(out / name, _LARGEST, DataError)
        except (OSError, DataError):
            return False
        if checksum(content) != checksums.get("picture" if kind == "copy" else kind):
            return False
    return True


def checksum(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def _link(there: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    with whole_file(name, durable=False) as partial:
        partial.unlink()
        try:
            os.link(there, partial)
        except OSError:
            partial.write_bytes(there.read_bytes())
        if name.exists():
            name.unlink()  # a rename onto another name of the same file does nothing


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return file.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
