"""Runs whose networks torch.compile has compiled for the device."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.processes import finish, processes, training
from tests.trainer.comparing import losses, same_end

pytestmark = pytest.mark.gpu
EXACT = "deterministic=true"


@pytest.mark.parametrize("stage", [1, 3])
def test_compiled_runs_learn_alike_and_resume_bit_for_bit(
    stage: int, tokens: Path, frozen_files: list[str], tmp_path: Path, say: Callable[[str], None]
) -> None:
    """ADDP, with recomputation. Without dropout, whose numbers differ, float32's losses are those
    of an eager run to 1e-4. With it, a run that is killed and resumed ends with the same bits."""
    tiny = ("addp.sizes.size=tiny", "predictor.sizes.size=tiny", "tokenizer.sizes.size=tiny")
    addp = ("objective=addp", *tiny, f"data.tokens={tokens}", *frozen_files, "recompute_every=2")
    options = (*addp, EXACT, f"zero_stage={stage}")
    alike = (*options, "precision=fp32", "addp.sizes.dropout=0")
    drops = (*options, "precision=bf16", "compile=on")
    runs = {name: tmp_path / name for name in ("eager", "compiled", "whole", "cut")}
    ended = processes(
        [
            training(runs["eager"], *alike, "compile=off"),
            training(runs["compiled"], *alike, "compile=on"),
            training(runs["whole"], *drops),
            training(runs["cut"], *drops, killed_at="step-00000008"),
        ]
    )
    assert [done.code for done in ended] == [0, 0, 0, -9], ended
    made = re.search(r"the networks are compiled: (\d+) graphs in \d+ s", ended[1].output)
    assert made is not None and int(made[1]) <= 10, ended[1].output
    assert losses(runs["compiled"]) == pytest.approx(losses(runs["eager"]), rel=1e-4)
    finish(training(runs["cut"], *drops))
    assert same_end(runs["whole"], runs["cut"])
    say(f"compiled, ZeRO-{stage}: {made[0]}; losses as in eager mode; resumed bit-equal")
