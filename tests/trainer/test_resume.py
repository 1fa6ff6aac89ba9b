"""A run that was cut off goes on exactly, in every ZeRO stage, and on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer.comparing import cut_back, losses, same_end, weight_distance
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish, run_world
from trainer.checkpointing.format import read_manifest
from trainer.run_folder import RunFolder

EMA = "ema_decay=0.9"


@pytest.mark.parametrize(
    "options",
    [
        ("zero_stage=0",),
        ("zero_stage=2",),
        ("zero_stage=3", "predictor.sizes.dim=128"),
        ("zero_stage=1", "log_every=5", "checkpoint.every=3", "checkpoint.keep=9"),
        ("zero_stage=1", "precision=bf16"),
        ("zero_stage=3", "precision=bf16-mixed", "recompute_every=2"),
        ("zero_stage=2", "precision=bf16", "offload=optimizer"),
        ("zero_stage=3", "precision=bf16", "offload=parameters", "recompute_every=2"),
        ("zero_stage=2", "optimizer.name=lamb"),
        ("zero_stage=3", "optimizer.name=lars"),
    ],
    ids=lambda options: "-".join(options),
)
def test_resumed_it_ends_bit_for_bit_the_same(
    options: tuple[str, ...], tokens: Path, tmp_path: Path
) -> None:
    """With dropout, accumulation of two micro batches, and an EMA of the weights."""
    whole = tmp_path / "whole"
    overrides = (*MAGE, f"data.tokens={tokens}", EMA, *options)
    finish(whole, *overrides)
    step = 3 if "checkpoint.every=3" in options else 4  # 3 lies between two metric lines
    cut = cut_back(whole, tmp_path / "cut", step)
    output = finish(cut, *overrides)
    assert f"resumed at step {step} of 12 on 2 ranks" in output
    if "log_every=5" in options:
        rows = [
            [(row["step"], row["loss"]) for row in RunFolder(run).read_metrics()]
            for run in (whole, cut)
        ]
        assert rows[0] == rows[1] and [step for step, _ in rows[0]] == [4, 9, 11]
        assert weight_distance(RunFolder(whole).network, RunFolder(cut).network) == 0
        assert weight_distance(RunFolder(whole).ema, RunFolder(cut).ema) == 0
    else:
        assert same_end(whole, cut)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_agree(stage: int, undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    finish(
        tmp_path / "run",
        *MAGE,
        f"data.tokens={tokens}",
        EMA,
        f"zero_stage={stage}",
        "recompute_every=1",
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-6)
    saved = 0
    for file in (tmp_path / "run" / "checkpoints" / "step-00000012").glob("*.safetensors"):
        saved += sum(value.numel() for value in load_file(file).values())
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / "step-00000012")
    elements = sum(math.prod(shape) for shape in manifest.parameters.values())
    assert saved == len(manifest.state_keys) * elements  # each is one rank's


def test_two_ranks_one_rank_four_ranks_two_ranks(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """With dropout on, and another ZeRO stage each time: the same path up to rounding, each sample
    once an epoch."""
    run = tmp_path / "run"
    options = (*MAGE, f"data.tokens={tokens}", EMA, "checkpoint.every=3", "checkpoint.keep=9")
    for step, processes, stage in ((3, 2, 1), (6, 1, 2), (9, 4, 3), (12, 2, 0)):
        output = finish(run, *options, f"zero_stage={stage}", processes=processes)
        assert f"resumed at step {step - 3} of 12 on {processes} ranks" in output or step == 3
        if step < 12:
            cut = cut_back(run, tmp_path / f"cut-{step}", step)
            run = cut
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-6)
    assert weight_distance(RunFolder(run).network, RunFolder(undisturbed).network) < 1e-4
    assert weight_distance(RunFolder(run).ema, RunFolder(undisturbed).ema) < 1e-4


def test_without_dropout_other_micro_batches_are_the_same_path(
    tokens: Path, tmp_path: Path
) -> None:
    """Up to rounding, and without a permission: masks are drawn for each sample, whatever batch it
    is in."""
    options = (*MAGE, f"data.tokens={tokens}", "predictor.sizes.dropout=0")
    finish(tmp_path / "whole", *options, processes=1)
    cut = cut_back(tmp_path / "whole", tmp_path / "cut", 4)
    output = finish(cut, *options, "batch.micro=8", processes=1)
    assert "changed since that checkpoint: batch.micro: 2 -> 8" in output
    assert losses(cut) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    cut = cut_back(undisturbed, tmp_path / "cut", 4)
    codes, output = run_world(cut, *MAGE, f"data.tokens={tokens}", EMA, processes=3)
    assert codes == [78] * 3
    assert "cannot be split over 3 ranks" in output and "or on 1, 2, 4 ranks" in output


def test_another_run_s_checkpoint_is_refused(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    cut = cut_back(undisturbed, tmp_path / "cut", 4)
    codes, output = run_world(
        cut, *MAGE, f"data.tokens={tokens}", EMA, "optimizer.name=lamb", processes=1
    )
    assert codes == [78] and "belongs to another run" in output and "optimizer" in output


def test_checkpoints_that_were_taken_away_are_no_reason_to_start_from_zero(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    cut = cut_back(undisturbed, tmp_path / "cut", 0)
    codes, output = run_world(cut, *MAGE, f"data.tokens={tokens}", EMA, processes=1)
    assert codes == [79] and "saved step 12, but its checkpoints are gone" in output


def test_an_ema_can_begin_in_the_middle(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    finish(whole, *MAGE, f"data.tokens={tokens}")
    cut = cut_back(whole, tmp_path / "cut", 4)
    finish(cut, *MAGE, f"data.tokens={tokens}", EMA, "resume.allow=[ema_decay]")
    assert losses(cut) == losses(whole) == losses(undisturbed)  # an EMA changes no training
    assert 0 < weight_distance(RunFolder(cut).ema, RunFolder(undisturbed).ema) < 0.05
