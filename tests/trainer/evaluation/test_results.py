"""Result files keep their keys on disk; those of earlier versions are read with today's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore
from model.errors import DataError
from trainer.config.renamed import RESULT_KEYS
from trainer.evaluation.reporting.metrics import metrics_of
from trainer.evaluation.reporting.records import read_run
from trainer.evaluation.results import Result, publish, read_results

EARLIER = Path(__file__).parent / "earlier" / "knn.json"  # with the keys of 0.1.0


def lay(folder: Path, document: str) -> LocalStore:
    step = folder / "evaluation" / "step-00000012"
    step.mkdir(parents=True)
    (step / "knn.json").write_text(document)
    (folder / "config.resolved.yaml").write_text("objective: addp\n")
    return LocalStore(folder)


def test_a_result_of_an_earlier_version(tmp_path: Path) -> None:
    store = lay(tmp_path, EARLIER.read_text())
    (result,) = read_results(store)
    assert (result.step, result.benchmark, result.weights) == (12, "knn", "raw")
    assert result.metrics == {"top1_k10": 0.5, "majority_class": 0.25, "images": 16}
    assert result.settings.keys() == {"images", "train_images", "held_out", "baselines"}
    assert result.locations == {"images": "data/pictures", "train_images": None}
    assert result.images == {"": "knn.png"}
    (reported,) = read_run(str(tmp_path)).results
    value = {name.base: str(value) for name, value in metrics_of(reported)}["top1_k10"]
    assert value == "50.0\N{NO-BREAK SPACE}% [28.0, 72.0]"  # of 16 images


def test_keys_on_disk_stay(tmp_path: Path) -> None:
    metrics = {"images": 3, "reference_images": 4}
    result = Result(step=4, benchmark="knn", weights="ema", metrics=metrics)
    assert publish(LocalStore(tmp_path), result, {"": b"x", "real": b"y"})
    folder = tmp_path / "evaluation" / "step-00000004"
    document = json.loads((folder / "knn-ema.json").read_text())
    assert document.keys() == json.loads(EARLIER.read_text()).keys()
    assert (document["part"], document["figures"]) == ("knn", metrics)
    assert document["pictures"] == {"": "knn-ema.png", "real": "knn-ema-real.png"}
    assert read_results(LocalStore(tmp_path)) == [
        result.model_copy(update={"images": document["pictures"]})
    ]


def test_the_page_on_evaluation_names_every_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    result = Result(step=4, benchmark="knn", weights="raw", metrics={})
    missing = [key for key in (*result.document(), *RESULT_KEYS.values()) if f"`{key}`" not in page]
    assert not missing


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"step": "4"}, "step: "),
        ({"figures": 3}, "figures: "),
        ({"weights": "average"}, "weights: "),
        ({"left_out": [{"step": "x"}]}, "left_out.0.step: "),
    ],
)
def test_a_broken_result_is_named(changed: dict[str, object], fault: str, tmp_path: Path) -> None:
    store = lay(tmp_path, json.dumps(json.loads(EARLIER.read_text()) | changed))
    with pytest.raises(DataError, match=f"knn.json .remove it, and it is measured again.: {fault}"):
        read_results(store)
