"""What a conditional run tells its network, and what it keeps."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.storage import open_store
from model.addp import ADDP
from model.conditioning import NOT_TOLD
from model.config import ConditionalConfig, TransformerConfig
from model.errors import ConfigError
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network, save_network
from tests.token_sets import write_tokens
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.evaluation.conftest import CLASSES, addp_options
from tests.trainer.launching import SMALL
from tests.trainer.worlds import finish
from trainer.config.reading import load_config
from trainer.objectives.addp import ADDPObjective
from trainer.objectives.condition import conditional_sizes, told_classes
from trainer.objectives.registry import make_objective
from trainer.run_folder import RunFolder

CONDITIONAL = "condition=classes"


@pytest.fixture
def options(
    tokens: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> list[str]:
    return addp_options(tmp_path, tokenizer, tokenizer_file, tokens, CLASSES)


def test_each_sample_is_decided_about_by_its_own_index() -> None:
    config = load_config(None, [CONDITIONAL, "condition_dropout=0.3"])
    labels = np.arange(4000) % 7
    whole = told_classes(config, labels, 100)
    assert whole is not None
    dropped = whole == NOT_TOLD
    assert whole[~dropped].tolist() == labels[~dropped.numpy()].tolist()
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.03)
    for start, count in ((0, 1), (37, 50), (3999, 1)):
        part = told_classes(config, labels[start : start + count], 100 + start)
        assert part is not None and torch.equal(part, whole[start : start + count])


def first_inputs(options: list[str], run: Path) -> tuple[ADDPObjective, dict[str, Any]]:
    with closing(make_objective(load_config(None, [f"run={run}", *SMALL, *options]))) as objective:
        assert isinstance(objective, ADDPObjective)
        return objective, objective.inputs(objective.batch(0, 0, 8), 0, torch.device("cpu"))


def test_where_all_classes_are_dropped_the_step_is_that_of_an_unconditional_run(
    options: list[str], tmp_path: Path
) -> None:
    results = []
    for more in ([], [CONDITIONAL, "condition_dropout=1"]):
        torch.manual_seed(0)
        objective, inputs = first_inputs([*options, *more], tmp_path)
        torch.manual_seed(1)
        loss = objective.network.train()(**inputs)
        loss.backward()
        gradients = {n: p.grad for n, p in objective.network.named_parameters()}
        results.append((loss.detach(), gradients))
    (a, first), (b, second) = results
    assert torch.equal(a, b)
    assert all(torch.equal(first[name], second[name]) for name in first)  # type: ignore[arg-type]


def test_a_conditional_step_is_told_classes(options: list[str], tmp_path: Path) -> None:
    """Labels of the shards, and which of them are dropped."""
    objective, inputs = first_inputs([*options, CONDITIONAL, "condition_dropout=0.5"], tmp_path)
    assert isinstance(objective.network, ADDP) and objective.network.classes == CLASSES
    assert set(inputs["classes"].tolist()) <= {NOT_TOLD, 0, 1, 2}
    assert (inputs["classes"] == NOT_TOLD).any() and (inputs["classes"] != NOT_TOLD).any()
    assert objective.identity()["network"]["classes"] == list(CLASSES)


def test_a_finish_starts_from_unconditional_weights_and_goes_on_after_a_cut(
    options: list[str], tmp_path: Path
) -> None:
    """Bit for bit, on as many ranks; on another number the same samples have lost their class."""
    torch.manual_seed(5)
    finish(tmp_path / "before", *options, "addp.sizes.dropout=0")
    start = f"addp.weights={RunFolder(tmp_path / 'before').network}"
    more = [*options, CONDITIONAL, "condition_dropout=0.5", start, "addp.sizes.dropout=0"]
    whole = tmp_path / "whole"
    finish(whole, *more)
    cut = cut_back(whole, tmp_path / "cut", 4)
    finish(cut, *more)
    assert same_end(whole, cut)
    finish(tmp_path / "one", *more, processes=1)
    assert losses(tmp_path / "one") == pytest.approx(losses(whole), rel=1e-4)
    trained = load_network(RunFolder(whole).network, "addp")
    assert isinstance(trained, ADDP) and len(trained.classes) == 3
    assert fingerprint(trained) != fingerprint(load_network(start.split("=")[1], "addp"))
    with pytest.raises(
        AssertionError, match=r"network: classes: checkpoint \['ellipse.*, now None"
    ):
        finish(cut_back(whole, tmp_path / "without", 4), *options, "addp.sizes.dropout=0")


def test_what_addp_is_taught_is_told_the_class_by_a_predictor_that_learned_it(
    options: list[str], tmp_path: Path
) -> None:
    """Such a predictor comes from a conditional run; another one teaches no classes."""
    predictor = tmp_path / "predictor"
    of_predictor = [o for o in options if not o.startswith(("objective", "addp", "predictor.we"))]
    finish(predictor, *of_predictor, "objective=mage", CONDITIONAL)
    file = f"predictor.weights={RunFolder(predictor).network}"
    overrides = [f"run={tmp_path}", *SMALL, *options, CONDITIONAL, "condition_dropout=0.5", file]
    with closing(make_objective(load_config(None, overrides))) as objective:
        assert isinstance(objective, ADDPObjective)
        batch = objective.batch(0, 0, 8)
        inputs = objective.inputs(batch, 0, torch.device("cpu"))
    assert batch.classes is not None and torch.equal(inputs["classes"], batch.classes)
    told = batch.classes != NOT_TOLD
    untold = objective.frozen_networks(batch.ids, batch.masks).target
    assert torch.equal(inputs["target"][~told], untold[~told])
    assert not torch.isclose(inputs["target"][told], untold[told]).flatten(1).all(1).any()

    plain = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    other = ConditionalConfig(**plain.model_dump(), classes=("x", "y"))
    unfit = tmp_path / "unfit.safetensors"
    for sizes, message in ((plain, "knows no classes"), (other, "other classes .*: x, y, ")):
        save_network(TokenPredictor(objective.config.geometry, sizes), unfit)
        with pytest.raises(ConfigError, match=message):
            first_inputs([*options, CONDITIONAL, f"predictor.weights={unfit}"], tmp_path)


def test_data_that_are_no_condition_are_refused(tmp_path: Path) -> None:
    def classes_of(images: int, *more: str) -> None:
        manifest = write_tokens(open_store(str(tmp_path / f"{images}")), [images])
        other = manifest.model_copy(update={"classes": ("x", "y")})
        config = load_config(None, [CONDITIONAL, f"data.tokens={tmp_path / str(images)}", *more])
        conditional_sizes(config, [manifest, other] if images == 2 else [manifest])

    with pytest.raises(ConfigError, match="no labels to learn from"):
        classes_of(1)
    with pytest.raises(ConfigError, match="different classes"):
        classes_of(2)
    with pytest.raises(ConfigError, match="1,001 classes, and the vocabulary has ids for 1,000"):
        classes_of(1001)
