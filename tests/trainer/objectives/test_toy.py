"""A new objective is one file and one entry: it trains, goes on from a checkpoint, and is known to
the configuration, the checks, the estimates, the report and the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.classifier import Classifier
from model.errors import ConfigError
from model.weights import load_network
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.launching import SMALL
from tests.trainer.objectives.rotation import ANGLES, ENTRY
from tests.trainer.worlds import Ranks
from trainer import costs
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.exported import exported_network
from trainer.config.defaults import documented_defaults
from trainer.config.reading import load_config
from trainer.engine.state_keys import WEIGHTS
from trainer.evaluation.benchmarks.registry import fitting
from trainer.evaluation.reporting.records import read_run
from trainer.evaluation.reporting.state import state_of
from trainer.objectives.registry import OBJECTIVES
from trainer.preflight.checks import check_run
from trainer.pretrain import run_and_leave
from trainer.run_folder import RunFolder


def registered(arguments: list[str]) -> None:
    """A rank of a program that has the objective."""
    OBJECTIVES["rotation"] = ENTRY
    run_and_leave(arguments)


@pytest.fixture
def options(images: Path) -> list[str]:
    sizes = [f"{section}.sizes.size=tiny" for section in ("tokenizer", "addp")]
    data = [f"data.images={images}", "data.views.size=16"]
    return [*SMALL, "objective=rotation", *sizes, *data, "precision=fp32"]


def train(run: Path, options: list[str]) -> str:
    arguments = [f"run={run}", *options]
    codes, output = Ranks(registered, arguments, 2, run.parent / f"{run.name}.log").wait()
    assert codes == [0, 0], output
    return output


def test_a_new_objective_trains_and_goes_on(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*options, "ema_decay=0.9"]
    whole = tmp_path / "whole"
    output = train(whole, options)
    assert f"Next: `addp export {whole}`" in output
    assert losses(whole)[-1] < losses(whole)[0]
    network = load_network(RunFolder(whole).network, "classifier")
    assert isinstance(network, Classifier) and network.config.classes == ANGLES

    cut = cut_back(whole, tmp_path / "cut", 4)
    assert "resumed at step 4 of 12 on 2 ranks" in train(cut, options)
    assert same_end(whole, cut)

    monkeypatch.setitem(OBJECTIVES, "rotation", ENTRY)
    with LocalCatalog(RunFolder(whole)).saved_state(8) as saved:
        assert isinstance(exported_network(saved, WEIGHTS), Classifier)
    sentence = state_of(read_run(str(whole)), 0.0).sentence
    assert sentence.startswith("Training to tell rotations (2 blocks of width 32")
    checks = list(check_run(None, [f"run={whole}", *options], 2))
    assert [c.name for c in checks if c.state != "ok"] == ["resume"], checks
    assert "step 12 of 12 is saved" in checks[-1].text


def test_commands_know_it_by_its_entry(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such objective; choose one of tokenizer, mage"):
        load_config(None, options)
    monkeypatch.setitem(OBJECTIVES, "rotation", ENTRY)
    config = load_config(None, options)
    assert config.depends_on_micro
    with pytest.raises(ConfigError, match="rotation does not use augmentation"):
        load_config(None, [*options, "augmentation.mixup=0"])
    assert "(used by tokenizer, pixels, classify, rotation)" in documented_defaults()
    trained, frozen = costs.parameters(config)
    operations = costs.image_operations(config)
    assert trained > 0 and frozen == 0 and operations.trained > 6 * trained
    assert fitting(ENTRY.network_kind)
