"""The benchmark `detection` as a whole, on a small untrained detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.annotations.coco import read_coco
from data_pipeline.storage import LocalStore, open_store
from data_pipeline.streaming.detection_loader import DetectionSource
from model.dense.detector import Detector
from tests.data_pipeline.annotations.small_data import annotation, coco, png, with_document, write
from tests.model.dense.small import small_detector
from tests.trainer.evaluation.evaluating import without_maker
from tests.trainer.evaluation.measures.dense_run import STEP, evaluate, evaluated, make_run
from tests.trainer.evaluation.measures.test_average_precision import NAMES, official, rectangle
from tests.trainer.worlds import Ranks
from trainer.evaluation.measures.detection import CocoPredictor
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.results import Result, read_results
from trainer.run_folder import step_folder

IMAGES = 9
CHUNKS = 5  # of two images
CLASSES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


@pytest.fixture(scope="module")
def network() -> Detector:
    return small_detector().eval()


@pytest.fixture(scope="module")
def data(network: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, annotated near some of what the network finds in it, so that it is right at times. One
    image has no annotation, and one cannot be read."""
    root, rng = tmp_path_factory.mktemp("data") / "coco", np.random.default_rng(1)
    files, document = coco(IMAGES)
    document["categories"], document["annotations"] = CLASSES, []
    for record in document["images"]:
        pixels = rng.integers(0, 256, (record["height"], record["width"], 3), np.uint8)
        files[f"train2017/{record['file_name']}"] = png(pixels)
    write(root, with_document(files, document))
    for record in found_in(root, network)[::3]:
        if record["image_id"] == 100:
            continue
        left, top, width, height = record["bbox"]
        outline = rectangle(left + 0.05 * width, top, 0.95 * width, height)
        number = 1 + len(document["annotations"])
        document["annotations"].append(
            annotation(number, record["image_id"], record["category_id"], outline)
        )
    files[f"train2017/{IMAGES - 1:012d}.png"] = b"no image"
    return write(root, with_document(files, document))


def found_in(data: Path, network: Detector) -> list[dict[str, Any]]:
    """What the network finds in the images that can be read, two at a time."""
    source = DetectionSource(open_store(str(data)), read_coco(data, "train", exact=True))
    predictor, found = CocoPredictor(network, source, torch.device("cpu")), []
    images = source.index.images
    for first in range(0, IMAGES, 2):
        rows = range(first, min(first + 2, IMAGES))
        chunk = [predictor.read(row) for row in rows if images[row].size > 20]
        found += predictor.document(chunk)["found"]
    return found


def new_run(folder: Path, network: Detector) -> Path:
    return make_run(folder / "run", network)


def options(data: Path) -> list[str]:
    return ["--suite", "detection", "--coco", str(data), "--split", "train"]


@pytest.fixture(scope="module")
def undisturbed(
    data: Path, network: Detector, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    run = new_run(tmp_path_factory.mktemp("undisturbed"), network)
    return run, evaluated(run, *options(data))


def test_it_is_what_pycocotools_finds(
    data: Path, network: Detector, undisturbed: tuple[Path, Result], tmp_path: Path
) -> None:
    """From the network's own results, written as JSON."""
    found, metrics = found_in(data, network), undisturbed[1].metrics
    document = json.loads((data / "annotations/instances_train2017.json").read_text())
    unread = document["images"].pop()["id"]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != unread]
    assert (metrics["images"], metrics["unread"]) == (IMAGES - 1, 1)
    assert metrics["objects"] == len(document["annotations"]) > 5
    (tmp_path / "truth.json").write_text(json.dumps(document))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        stats = official(tmp_path / "truth.json", found, kind, tmp_path).stats
        expected = {f"{name}_{key}": value for key, value in zip(NAMES, stats, strict=False)}
        for key, value in expected.items():
            if value > -1:
                assert metrics[key] == pytest.approx(value, abs=1e-6), key
            else:
                assert key not in metrics
    assert 0 < metrics["box_ap"] < 1 and 0 < metrics["mask_ap"] < 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_finds_the_same(
    ranks: int, data: Path, network: Detector, undisturbed: tuple[Path, Result], tmp_path: Path
) -> None:
    result = evaluated(new_run(tmp_path, network), *options(data), ranks=ranks)
    expected, metrics = dict(undisturbed[1].metrics), dict(result.metrics)
    of_classes = [one.pop("classes") for one in (expected, metrics)]
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert of_classes[0].keys() == of_classes[1].keys()
    for name, of_class in of_classes[0].items():
        assert of_classes[1][name] == pytest.approx(of_class, abs=1e-6)


def test_two_evaluators_that_are_killed(
    data: Path, network: Detector, undisturbed: tuple[Path, Result], tmp_path: Path
) -> None:
    """Each after two chunks. Those that come after them compute the rest, and nothing twice."""
    run, computed = new_run(tmp_path, network), ""
    for life in ("2", "2", "0"):
        both = [
            Ranks(evaluate, [life, str(run), *options(data)], 1, tmp_path / f"log{i}")
            for i in range(2)
        ]
        done = [one.wait() for one in both]
        computed += done[0].output + done[1].output
        if done[0].codes == done[1].codes == [0]:
            break
        assert {code for one in done for code in one.codes} <= {0, 9}, computed
    lines = sorted(line for line in computed.splitlines() if line.startswith("computed"))
    assert lines == [f"computed chunk {n}" for n in range(CHUNKS)]
    results = read_results(LocalStore(run))
    assert without_maker(results) == without_maker([undisturbed[1]])
    name = f"evaluation/{step_folder(STEP)}/detection-predictions.png"
    assert (run / name).read_bytes() == (undisturbed[0] / name).read_bytes()
    assert not list((run / "evaluation" / step_folder(STEP)).rglob("00*.json"))


def test_the_report_shows_it(undisturbed: tuple[Path, Result]) -> None:
    run, _ = undisturbed
    page = write_report([str(run)], run.parent / "report.html").read_text()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert f"<summary>Detection by class, step {STEP}</summary>" in page
    assert "<td>box AP50 ↑</td>" in page and f'alt="Detection, step {STEP}"' in page
