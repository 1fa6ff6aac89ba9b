"""SIGKILL at random moments, to one rank or all: the run always goes on from a valid checkpoint by
itself, and ends with the undisturbed run's losses, weights and EMA."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest

from tests.trainer.comparing import same_end
from tests.trainer.killing import survive
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish
from trainer.run_folder import RunFolder

STEPS = 40
OPTIONS = (
    *MAGE,
    f"schedule.total={STEPS}",
    "checkpoint.every=1",
    "checkpoint.keep=2",
    "checkpoint.permanent_every=10",
    "ema_decay=0.9",
    "health.spikes=rewind",
    "checkpoint.retry_seconds=20",
)


@pytest.mark.parametrize(
    ("stage", "kills", "seed"),
    [(1, 4, 0), *(pytest.param(s, 30, 10 + s, marks=pytest.mark.long) for s in range(4))],
)
def test_killed_again_and_again(
    stage: int,
    kills: int,
    seed: int,
    tokens: Path,
    tmp_path: Path,
    record_property: pytest.FixtureRequest,
) -> None:
    options = (*OPTIONS, f"data.tokens={tokens}", f"zero_stage={stage}")
    finish(tmp_path / "whole", *options)
    dice = random.Random(seed)
    moments: collections.Counter[str] = collections.Counter()
    round_ = 0
    while moments.total() < kills:
        round_ += 1
        run = tmp_path / f"run-{round_}"
        upload = f"checkpoint.upload={tmp_path / f'store-{round_}'}"
        moments += survive(run, (*options, upload), kills - moments.total(), dice)
        assert same_end(run, tmp_path / "whole")
        assert not list(RunFolder(run).checkpoints.glob("*.tmp"))
    record_property("chaos", (stage, round_, dict(moments)))  # type: ignore[operator]
