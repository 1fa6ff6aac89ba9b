"""Samples of classes: sets, grids, and what evaluations make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import TokenLoader
from model.errors import ConfigError
from tests.cluster.calling import addp
from tests.trainer.evaluation.conftest import CLASSES
from tests.trainer.evaluation.evaluating import codes
from tests.trainer.evaluation.evaluating import start as evaluate
from tests.trainer.evaluation.test_evaluate import copy_of
from tests.trainer.evaluation.test_generate import contents, finished, start
from trainer.evaluation.generate import main
from trainer.evaluation.measures.masked_tokens import _MASK_DRAWS, _masked_nats, _predictor_of
from trainer.evaluation.results import read_results
from trainer.evaluation.sample_classes import SampleClasses
from trainer.evaluation.sample_set import SETTINGS
from trainer.evaluation.trained import load_addp, run_config
from trainer.objectives.addp import load_frozen


def test_a_set_of_classes_is_the_same_on_any_number_of_ranks_and_after_a_kill(
    conditional_run: Path, tmp_path: Path
) -> None:
    options = {"classes": ["line", "0"], "class_guidance": 2.0}
    finished(start(conditional_run, tmp_path / "one", **options))
    two = start(conditional_run, tmp_path / "two", 2, **options)
    two[1].kill()
    finished(two[:1])
    finished(start(conditional_run, tmp_path / "two", **options))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    stated = json.loads((tmp_path / "one" / SETTINGS).read_text())
    assert stated["classes"] == ["line", "ellipse"] and stated["sampler"]["class_guidance"] == 2.0
    for other in ({"classes": ["line"]}, {"classes": ["none"]}, {"class_guidance": 1.0}):
        with pytest.raises(ConfigError, match="holds another set of samples"):
            main(str(conditional_run), count=60, steps=4, batch=8, into=tmp_path / "one",
                 **{**options, **other})  # fmt: skip


def test_sets_of_earlier_versions_have_no_classes(conditional_run: Path, tmp_path: Path) -> None:
    """They knew neither these nor their guidance, so they go on with none."""
    options = {"count": 8, "steps": 2, "batch": 8, "into": tmp_path / "set"}
    main(str(conditional_run), **options, classes=["none"])  # type: ignore[arg-type]
    stated = json.loads((tmp_path / "set" / SETTINGS).read_text())
    del stated["classes"], stated["sampler"]["class_guidance"]
    (tmp_path / "set" / SETTINGS).write_text(json.dumps(stated))
    (tmp_path / "set" / "000003.png").unlink()
    with pytest.raises(ConfigError, match=r"classes: None there, now .* without .* --class none$"):
        main(str(conditional_run), **options)  # type: ignore[arg-type]
    main(str(conditional_run), **options, classes=["none"])  # type: ignore[arg-type]
    assert (tmp_path / "set" / "000003.png").exists()


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({}, list(CLASSES)),
        ({"classes": ["none"]}, None),
        ({"class_guidance": 0.0}, None),
        ({"complete": True, "variants": 1}, None),
        ({"complete": True, "variants": 1, "classes": ["line"]}, ["line"]),
    ],
)
def test_all_classes_take_turns_unless_something_else_is_said(
    options: dict[str, Any], classes: list[str] | None, conditional_run: Path, images: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """What is completed says itself what it is."""
    given = images / "line" / "000.png" if options.pop("complete", False) else None
    options = {"count": 4, "steps": 2, "out": tmp_path / "grid.png", "complete": given} | options
    main(str(conditional_run), **options)
    stated = json.loads((tmp_path / "grid.json").read_text())
    assert stated["classes"] == classes
    if given is None and classes is None:
        assert Image.open(tmp_path / "grid.png").size == (2 * 18 + 2, 2 * 18 + 2)


def test_a_grid_has_a_row_for_each_class(conditional_run: Path, run: Path, tmp_path: Path) -> None:
    """Whole rows: 7 samples are two of each of three classes. Two are no rows, but the first two
    classes."""
    options = {"count": 7, "steps": 2, "out": tmp_path / "grid.png"}
    main(str(conditional_run), **options, classes=["all"])  # type: ignore[arg-type]
    stated = json.loads((tmp_path / "grid.json").read_text())
    assert stated["count"] == 6 and stated["classes"] == list(CLASSES)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape[0] == 3 * 18 + 2 and grid.shape[1] > 2 * 18 + 2
    main(str(conditional_run), **{**options, "count": 2}, classes=["all"])  # type: ignore[arg-type]
    few = np.asarray(Image.open(tmp_path / "grid.png"))
    assert few.shape[:2] == (2 * 18 + 2, 18 + 2)
    assert json.loads((tmp_path / "grid.json").read_text())["count"] == 2
    with pytest.raises(ConfigError, match="no class 'cat'; its classes are ellipse, line, rec"):
        main(str(conditional_run), **options, classes=["cat"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trained without a condition"):
        main(str(run), **options, classes=["line"])  # type: ignore[arg-type]


def test_classes_are_drawn_as_often_as_the_data_have_them() -> None:
    classes = SampleClasses.as_in_data(CLASSES, [0, 0, 0, 2])
    assert classes.settings == {"ellipse": 3, "rectangle": 1}
    whole = classes.of(5, 0, 4000)
    assert whole.bincount().tolist() == pytest.approx([3000, 0, 1000], abs=120)
    assert classes.of(5, 1234, 50).tolist() == whole[1234:1284].tolist()
    assert SampleClasses.as_in_data(CLASSES, []).of(5, 0, 90).bincount().tolist() == pytest.approx(
        [30, 30, 30], abs=15
    )


def test_an_evaluation_draws_classes_and_has_them_recognised(
    conditional_run: Path, run: Path, images: Path, tmp_path: Path
) -> None:
    options = ("--suite", "samples,conditional", "--images", str(images), "--work", str(tmp_path))
    log = tmp_path / "log"
    assert codes(evaluate(conditional_run, log, *options, world_size=2)) == [0, 0], log.read_text()
    conditional, samples = read_results(LocalStore(conditional_run))
    found = conditional.metrics
    assert 0 <= found["recognised_low"] <= found["recognised"] <= found["recognised_high"] <= 1
    assert found["samples"] == 16 and found["real"] > 0.5 and 1 / 3 <= found["chance"] < 0.8
    assert samples.settings["class_guidance"] == 1 and samples.settings["images"]
    step = conditional_run / "evaluation" / "step-00000012"
    grid = Image.open(step / "samples-classes.png")
    assert grid.height == 3 * (6 * 16 + 2) + 2  # a row for each class
    for other, more in ((run, ()), (conditional_run, ("--class-guidance", 0))):
        done = addp("evaluate", other, *options, *more)
        assert done.code == 78 and "conditional measures samples of classes" in done.stderr
        assert "step 12" not in done.stderr  # before anything is measured


def test_images_of_a_class_that_the_network_does_not_know(
    conditional_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "images" / "hexagon").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "hexagon" / "0.png")
    options = ("--suite", "samples", "--images", tmp_path / "images", "--work", tmp_path / "work")
    done = addp("evaluate", copy_of(conditional_run, tmp_path / "run"), *options)
    said = " ".join(done.stderr.split())
    assert done.code == 78 and "the network knows no class 'hexagon' of the data" in said, said
    assert "--class-guidance 0 measures samples without a class" in said


def test_held_out_tokens_are_predicted_given_their_classes(
    conditional_run: Path, held_out_tokens: Path, tmp_path: Path
) -> None:
    folder, log = copy_of(conditional_run, tmp_path / "run"), tmp_path / "log"
    options = ("--suite", "held-out", "--tokens", str(held_out_tokens))
    assert codes(evaluate(folder, log, *options)) == [0], log.read_text()
    (result,) = read_results(LocalStore(folder))
    assert result.metrics["classes_told"] == 3
    network, frozen = load_addp(str(folder)).network, load_frozen(run_config(str(folder)))
    predict = _predictor_of(network, frozen)
    data = TokenLoader(str(held_out_tokens), global_batch=1, seed=0)
    ids, labels = (torch.from_numpy(d.astype(int)) for d in (data.all_tokens(), data.all_labels()))
    found = {}
    for told, classes in (("right", labels), ("wrong", (labels + 1) % 3), ("none", None)):
        draws = [_masked_nats(predict, ids, classes, draw, 16) for draw in range(_MASK_DRAWS)]
        found[told] = sum(nats for nats, _ in draws) / sum(tokens for _, tokens in draws)
    assert result.metrics["cross_entropy"] == pytest.approx(found["right"], rel=1e-5)
    assert min(abs(found["right"] - found[other]) for other in ("wrong", "none")) > 1e-4
