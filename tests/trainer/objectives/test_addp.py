"""What an objective makes of a batch, and what that must not cost."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from model.denoising import FrozenNetworks
from model.vq import VQTokenizer
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.launching import SMALL
from trainer.config.reading import load_config
from trainer.objectives.addp import ADDPObjective
from trainer.objectives.registry import make_objective


def test_frozen_networks_are_moved_where_they_are_not_yet(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To go through all of their tensors took some 10 ms a step, though nothing moved."""
    moved: list[torch.device] = []
    options = addp_options(tmp_path, tokenizer, tokenizer_file, tokens)
    monkeypatch.setattr(
        FrozenNetworks,
        "to",
        lambda _, place: moved.append(place) if isinstance(place, torch.device) else _,
    )
    with closing(
        make_objective(load_config(None, [f"run={tmp_path}", *SMALL, *options]))
    ) as objective:
        assert isinstance(objective, ADDPObjective)
        batch, there = objective.batch(0, 0, 2), torch.device("cpu")
        objective.inputs(batch, 0, there)
        assert moved == []
        objective.frozen_networks._apply(lambda tensor: tensor.to("meta"))
        with pytest.raises((NotImplementedError, RuntimeError)):  # since they were not moved here
            objective.inputs(batch, 0, there)
        assert moved == [there]
