"""One mask ratio for a global step, or one for each micro batch; the same on any number of
ranks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import save_network
from tests.trainer.comparing import losses
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import finish
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.base import Objective
from trainer.objectives.registry import make_objective
from trainer.objectives.tokens import TokenObjective
from trainer.prefetch import Prefetch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def addp(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, ...]:
    """Overrides of an ADDP run without dropout."""
    predictor = tmp_path_factory.mktemp("weights") / "predictor.safetensors"
    torch.manual_seed(1)
    sizes = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    save_network(TokenPredictor(Geometry.of(tokenizer.config), sizes), predictor)
    return (
        "objective=addp",
        "addp.sizes.size=tiny",
        "addp.sizes.dropout=0",
        "predictor.sizes.size=tiny",
        "tokenizer.sizes.size=tiny",
        "precision=fp32",
        f"tokenizer.weights={tokenizer_file}",
        f"predictor.weights={predictor}",
        f"data.tokens={tokens}",
    )


def step_masks(objective: Objective, config: RunConfig, step: int, ranks: int) -> list[Tensor]:
    """(micro, L) of each micro batch of a step, in the order of the global batch, as `ranks` ranks
    draw them."""
    accumulation = config.batch.global_batch // (config.batch.micro * ranks)
    masks: list[Tensor] = []
    for rank in range(ranks):
        with closing(Prefetch(objective, rank, accumulation, config.batch.micro)) as prefetch:
            masks += [
                objective.inputs(batch, step, CPU)["mask"]
                for batch in prefetch.get([step])[0].result()
            ]
    return masks


def counts(masks: list[Tensor]) -> list[int]:
    """Masked tokens of an image, by micro batch; all of its images have as many."""
    assert all((mask.sum(1) == mask[0].sum()).all() for mask in masks)
    return [int(mask[0].sum()) for mask in masks]


@pytest.mark.parametrize("objective_name", ["addp", "mage"])
def test_ranks_and_accumulation_share_one_draw(
    objective_name: str, addp: tuple[str, ...], tokens: Path, tmp_path: Path
) -> None:
    options = addp if objective_name == "addp" else (*MAGE, f"data.tokens={tokens}")
    config = load_config(None, [f"run={tmp_path}", *SMALL, *options, "mask_ratio_scope=micro"])
    with closing(make_objective(config)) as objective:
        drawn = [counts(step_masks(objective, config, step, 1)) for step in range(12)]
        # Of steps of 4 micro batches, with 16 tokens an image, few have equal counts.
        assert sum(len(set(step)) > 1 for step in drawn) >= 8

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(step=st.integers(0, 10**6), ranks=st.sampled_from([2, 4]))
        def same(step: int, ranks: int) -> None:
            alone, shared = (step_masks(objective, config, step, n) for n in (1, ranks))
            assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))

        same()
    with closing(
        make_objective(config.model_copy(update={"mask_ratio_scope": "step"}))
    ) as objective:
        assert all(
            len(set(counts(step_masks(objective, config, step, 2)))) == 1 for step in range(12)
        )


def test_the_micro_batch_s_size_is_part_of_the_path(addp: tuple[str, ...], tmp_path: Path) -> None:
    drawn = []
    for micro in (2, 4):
        config = load_config(
            None,
            [f"run={tmp_path}", *SMALL, *addp, "mask_ratio_scope=micro", f"batch.micro={micro}"],
        )
        with closing(make_objective(config)) as objective:
            drawn.append([torch.cat(step_masks(objective, config, step, 1)) for step in range(4)])
    assert not all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_one_rank_and_two_train_alike_by_the_reference_s_law(
    addp: tuple[str, ...], tmp_path: Path
) -> None:
    """In ZeRO-3 as well, where ranks gather weights for inputs of different lengths. The loss is
    the mean over micro batches of each one's mean over its masked tokens: the reference's, whose
    ranks DDP averages."""
    options = (*addp, "mask_ratio_scope=micro", "schedule.total=5")
    finish(tmp_path / "one", *options, "zero_stage=1", processes=1)
    finish(tmp_path / "two", *options, "zero_stage=3", processes=2)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-6)
    config = load_config(None, [f"run={tmp_path}", *SMALL, *options])
    torch.manual_seed(config.seed)
    with closing(make_objective(config)) as objective, torch.no_grad():
        assert isinstance(objective, TokenObjective)
        means, masked = [], []
        for offset in range(0, config.batch.global_batch, config.batch.micro):
            inputs = objective.inputs(objective.batch(0, offset, config.batch.micro), 0, CPU)
            means.append(float(objective.network(**inputs)))
            masked.append(int(inputs["mask"].sum()))
    mean = sum(means) / len(means)
    pooled = sum(m * n for m, n in zip(means, masked, strict=True)) / sum(masked)
    first = losses(tmp_path / "one")[0]
    assert first == pytest.approx(mean, rel=1e-6) and abs(pooled - mean) > 1e-5 * mean
