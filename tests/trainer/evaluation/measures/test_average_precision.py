from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.annotations.pycoco import packed_masks
from tests.data_pipeline.annotations.small_data import annotation, coco, with_document, write
from trainer.evaluation.measures.average_precision import average_precision

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # in pycocotools' order


def rectangle(left: float, top: float, width: float, height: float) -> list[list[float]]:
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def drawn_truth(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Images with rectangles of all sizes and of two classes, and crowds; one has none."""
    files, document = coco(5)
    document["annotations"] = []
    for record in document["images"]:
        record["width"], record["height"] = 300, 260
        for _ in range(6 if record["id"] != 98 else 0):
            number = len(document["annotations"])
            left, top = rng.uniform(0, 60, 2)
            width, height = rng.uniform((8, 8), (195, 195))
            document["annotations"].append(
                annotation(
                    1 + number,
                    record["id"],
                    int(rng.choice([3, 7])),
                    rectangle(left, top, width, height),
                    crowd=0,
                )
            )
        height, width = record["height"], record["width"]
        crowd = [4 * height, 9 * height, (width - 13) * height]
        document["annotations"].append(
            annotation(
                1000 + record["id"],
                record["id"],
                3,
                {"size": [height, width], "counts": crowd},
                box=[4, 0, 9, height],
                crowd=1,
            )
        )
    return files, document


def guessed(rng: np.random.Generator, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Rectangles near the annotated ones, some of another class, and some elsewhere."""
    found = []
    for record in document["annotations"]:
        for shift in (2.0, 10.0, 60.0):
            left, top, width, height = np.array(record["bbox"]) + rng.normal(0, shift, 4)
            left, top = np.clip([left, top], 0, 200)
            width, height = np.clip([width, height], 4, (300 - left, 260 - top))
            mask = np.zeros((1, 260, 300), bool)
            mask[0, int(top) : int(top + height), int(left) : int(left + width)] = True
            found.append(
                {
                    "image_id": record["image_id"],
                    "category_id": int(rng.choice([3, 7])),
                    "bbox": [float(left), float(top), float(width), float(height)],
                    "score": float(rng.choice([0.3, 0.5, rng.uniform()])),
                    "segmentation": {"size": [260, 300], "counts": packed_masks(mask)[0]},
                }
            )
    return found


def official(truth: Path, found: list[dict[str, Any]], kind: str, folder: Path) -> COCOeval:
    """pycocotools, from file to file."""
    results = folder / f"{kind}.json"
    if kind == "segm":  # as detectron2: the area of a result is that of its mask
        found = [{k: v for k, v in one.items() if k != "bbox"} for one in found]
    results.write_text(json.dumps(found))
    expected = COCO(str(truth))
    evaluation = COCOeval(expected, expected.loadRes(str(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CocoIndex, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    files, document = drawn_truth(rng)
    root = write(tmp_path_factory.mktemp("coco"), with_document(files, document))
    return root, read_coco(root, "train", exact=True), guessed(rng, document)


@pytest.mark.parametrize(("name", "kind"), [("box", "bbox"), ("mask", "segm")])
def test_it_is_what_pycocotools_finds(
    name: str, kind: str, drawn: tuple[Path, CocoIndex, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, index, found = drawn
    truth = index.ground_truth(np.arange(len(index.images)))
    metrics, of_classes = average_precision(truth, found, index.classes, masks=True)
    evaluation = official(root / "annotations/instances_train2017.json", found, kind, tmp_path)
    ours = [metrics[f"{name}_{key}"] for key in NAMES]
    assert ours == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-6) and min(ours) > 0
    for label, of_class in enumerate(index.classes):
        part = evaluation.eval["precision"][:, :, label, 0, 2]
        expected = part[part > -1].mean()
        assert of_classes[of_class][f"{name}_ap"] == pytest.approx(expected, abs=1e-6)


def test_an_annotation_may_have_the_id_0(
    drawn: tuple[Path, CocoIndex, list[dict[str, Any]]],
) -> None:
    """pycocotools takes it for one that is not found."""
    _, index, found = drawn
    truth = index.ground_truth(np.arange(len(index.images)))
    expected = average_precision(truth, found, index.classes, masks=True)
    for number, record in enumerate(truth["annotations"]):
        record["id"] = number
    assert average_precision(truth, found, index.classes, masks=True) == expected


def test_what_is_missing(drawn: tuple[Path, CocoIndex, list[dict[str, Any]]]) -> None:
    """Nothing found is no precision; nothing to find has none, and is left out."""
    _, index, found = drawn
    truth = index.ground_truth(np.arange(len(index.images)))
    nothing, _ = average_precision(truth, [], index.classes, masks=False)
    assert set(nothing.values()) == {0.0} and "mask_ap" not in nothing
    empty = index.ground_truth(np.flatnonzero(index.image_ids == 98))
    of_image = [one for one in found if one["image_id"] == 98]
    assert of_image  # near the crowd
    assert average_precision(empty, of_image, index.classes, masks=True) == ({}, {})
