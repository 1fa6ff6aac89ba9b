"""What the stages of the demo are, and what each is promised to take."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from cluster.demo.dense import DENSE_TRAININGS, dense_stages
from cluster.demo.promise import Promise, Spent
from cluster.demo.run import run_demo
from cluster.demo.speed import Speed
from cluster.demo.stages import Demo, config_of, stages
from cluster.demo.targets import show_targets
from data_pipeline.images.openmoji import render
from model import load
from model.errors import ConfigError
from model.shipped import shipped_folder
from trainer.run_folder import RunFolder

SPEED = Speed(
    {"tokenizer": 0.3, "predictor": 0.1, "addp": 0.2, "segment": 0.6, "detect": 0.9},
    view=0.001,
    denoising=0.003,
    feature=0.002,
    fidelity=0.02,
    slowness=1.0,
)


@pytest.fixture
def whole(images: Path, tmp_path: Path) -> Demo:
    return Demo(images, tmp_path / "demo", processes=2, scale=1.0, quick=False)


def test_a_quick_demo_leaves_out_what_makes_no_pictures(whole: Demo) -> None:
    quick = dataclasses.replace(whole, scale=0.3, quick=True)
    titles, of_whole = ([stage.title for stage in stages(demo)] for demo in (quick, whole))
    assert titles == [
        "train the tokenizer",
        "token shards: train",
        "train the predictor",
        "train the addp",
        "evaluate the addp",
    ]
    assert [title for title in of_whole if title in titles] == titles and len(of_whole) == 8
    seconds, of_all = (sum(s.cost(SPEED) for s in stages(demo)) for demo in (quick, whole))
    assert 0.25 < seconds / of_all < 0.4


def test_a_quick_demo_goes_on_from_what_ships(tmp_path: Path) -> None:
    """A few steps of its recipe, from the weights and with the frozen networks that ship."""
    render(tmp_path / "images", limit=60)
    start = shipped_folder()
    quick = Demo(tmp_path / "images", tmp_path / "demo", 1, scale=0.03, quick=True, start=start)
    road = stages(quick)
    assert [stage.title for stage in road] == [
        "token shards: train",
        "train the addp",
        "evaluate the addp",
    ]
    for stage in road[:2]:
        assert not stage.is_done() and not stage.work() and stage.is_done()
    before, after = load().network.state_dict(), load(quick.run("addp")).network.state_dict()
    assert all(torch.allclose(before[key], after[key], atol=0.01) for key in before)
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_dense_transfer_begins_with_the_encoder_of_the_demo(whole: Demo) -> None:
    road = dense_stages(whole)
    assert [stage.title for stage in road] == [
        "compose scenes",
        "train the segmenter",
        "evaluate the segmenter",
        "train the detector",
        "evaluate the detector",
    ]
    assert not any(stage.is_done() for stage in road)
    assert all(stage.cost(SPEED) > 0 for stage in road)
    for name in DENSE_TRAININGS:
        encoder = config_of(name).addp
        assert encoder.sizes == config_of("addp").addp.sizes
        assert encoder.weights == RunFolder(Path("runs/demo/addp").resolve()).network
    with pytest.raises(ConfigError, match="--quick measures none"):
        run_demo(whole.images, whole.out, 2, 1.0, quick=True, dense=True)


def test_what_dense_transfer_needs_is_said_at_its_start(
    whole: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else found(name)
    )
    with pytest.raises(ConfigError, match="--dense needs torchvision: "):
        run_demo(whole.images, whole.out, 2, 1.0, dense=True)
    assert not whole.out.exists()


def test_checkpoints_are_where_a_training_leaves_them(whole: Demo) -> None:
    saves, total = config_of("addp").checkpoint, config_of("addp").schedule.total
    steps = whole.checkpoints("addp")
    assert len(steps) == saves.keep and steps[-1] == total
    assert all(step % saves.every == 0 for step in steps[:-1])
    short = dataclasses.replace(whole, scale=0.001)
    assert short.checkpoints("addp") == [short.length("addp")[0]]


def test_a_training_costs_the_steps_that_it_lacks(whole: Demo, tmp_path: Path) -> None:
    training = next(s for s in stages(whole) if s.title == "train the predictor")
    before = training.cost(SPEED)
    saved = RunFolder(whole.run("predictor")).checkpoints / "step-00000100" / "manifest.json"
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert before - training.cost(SPEED) == pytest.approx(100 * SPEED.steps["predictor"])


def test_a_promise_stands_beside_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    promise = Promise({"train": 120.0, "evaluate": 60.0})
    promise.give()
    promise.note("train", Spent(90.0, 180.0))
    promise.settle(Spent(100.0, 190.0))
    said = capsys.readouterr().err
    assert "will take 3.0 min, until" in said
    rows = [line.split("  ") for line in said.splitlines()]
    assert [[c.strip() for c in row if c.strip()] for row in rows][-2:] == [
        ["train", "2.0 min", "1.5 min", "3.0 min"],
        ["the whole demo", "3.0 min", "1.7 min", "3.2 min"],
    ]


def test_a_quick_demo_says_so_in_place_of_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_targets(tmp_path, "trained too shortly: pictures only")
    (kept,) = json.loads((tmp_path / "addp" / "evaluation" / "targets.json").read_text())
    for said in (capsys.readouterr().out, f"{kept['name']} {kept['value']}"):
        assert "quick demo" in said and "pictures only" in said
