"""Writes the tables of ADE20k's layout, as the Scene Parsing Challenge of 2016 has them (150
classes there; as many here as the scenes have, and the background).

objectInfo150.txt: a header, then a line for each class with tabs between its index in the label
maps, its share of the pixels, the numbers of training and validation pictures that show it, and its
name. sceneCategories.txt: a picture's name and its kind of scene in each line. Index 0 is "other",
which is not evaluated. https://github.com/CSAILVision/sceneparsing
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.annotations.ade20k_classes import BACKGROUND
from data_pipeline.scenes.chunks import SceneRecord
from data_pipeline.scenes.emoji import PARTS
from data_pipeline.scenes.files import ADE20K, ade20k_name, background_label
from data_pipeline.scenes.settings import SPLITS, SceneSettings, Split
from model.files import write_atomically


def write_tables(
    out: Path, settings: SceneSettings, records: Iterable[tuple[Split, int, SceneRecord]]
) -> None:
    """Write the tables of all scenes. Raises OSError."""
    pixels: Counter[int] = Counter()
    pictures: dict[Split, Counter[int]] = {split: Counter() for split in SPLITS}
    background, all_pixels = background_label(settings.classes), settings.size**2
    kinds = []
    for split, index, record in records:
        shown = Counter({background: all_pixels})
        for annotation in record.annotations:
            shown[annotation.label] += annotation.area
            shown[background] -= annotation.area
        pixels += shown
        pictures[split].update(label for label, count in shown.items() if count)
        kinds.append(f"{ade20k_name(split, index)} {record.background}")
    rows = ["Idx\tRatio\tTrain\tVal\tName", *_rows(settings.classes, pixels, pictures)]
    _write(out / ADE20K / "objectInfo150.txt", rows)
    _write(out / ADE20K / "sceneCategories.txt", kinds)
    _write(out / ADE20K / "partInfo.txt", [f"{i}\t{part}" for i, part in enumerate(PARTS, 1)])


def _rows(
    classes: tuple[str, ...], pixels: Counter[int], pictures: dict[Split, Counter[int]]
) -> Iterator[str]:
    for label, name in enumerate((*classes, BACKGROUND), 1):
        share = pixels[label] / pixels.total()
        counts = "\t".join(str(pictures[split][label]) for split in SPLITS)
        yield f"{label}\t{share:.4f}\t{counts}\t{name}"


def _write(path: Path, lines: list[str]) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
