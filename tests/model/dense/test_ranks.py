"""Two real ranks: BatchNorm over both, and both networks under each stage of ZeRO, where one rank
has nothing to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.dense.batch_norm import RankBatchNorm
from tests.model.dense.small import NONE, SIZES, TWO, small_detector, small_segmenter
from tests.trainer.worlds import Ranks
from trainer.config.schema import RunConfig
from trainer.engine.engine import Engine, start_distributed
from trainer.timing import Stopwatch

STEPS = 3


def train(arguments: list[str]) -> int:
    """A rank that trains both networks in each stage; it writes its losses."""
    rank, world_size, _ = start_distributed()
    losses = {}
    for kind, build in (("segmenter", small_segmenter), ("detector", small_detector)):
        for stage in range(4):
            values = {
                "precision": "fp32",
                "zero_stage": stage,
                "batch": {"global_batch": 4, "micro": 2},
            }
            engine = Engine(build(), RunConfig.model_validate(values), 1, world_size)
            images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(rank))
            if kind == "segmenter":
                inputs = {"images": images, "labels": torch.full((2, 96, 96), 255 if rank else 1)}
            else:
                objects = [NONE, NONE] if rank else [TWO, NONE]
                inputs = {"images": images, "sizes": SIZES, "instances": objects}
            for step in range(STEPS):
                torch.manual_seed(step)
                result = engine.optimizer_step([inputs], 1e-3, Stopwatch(False))
                losses[f"{kind} {stage} {step}"] = float(result.loss)
    Path(arguments[0], f"{rank}.json").write_text(json.dumps(losses))
    _batch_norm(Path(arguments[0]), rank)
    return 0


def _normalised(norm: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The result for x, and the gradient of its sum with these weights."""
    x = x.clone().requires_grad_(True)
    result = norm(x)
    (gradient,) = torch.autograd.grad((result * weight).sum(), x)
    return result.detach(), gradient


def _batch_norm(out: Path, rank: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 5, 5) * 2 + 30, torch.randn(4, 3, 5, 5)
    own = slice(2 * rank, 2 * rank + 2)
    norm, whole = RankBatchNorm(3), nn.BatchNorm2d(3)
    ours = _normalised(norm, x[own], weight[own])
    theirs = [part[own] for part in _normalised(whole, x, weight)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)
    dist.barrier()
    (out / f"norm-{rank}").touch()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = Ranks(train, [str(folder)], 2, folder / "log").wait()
    assert codes == [0, 0], output
    return folder


def test_batch_norm_is_that_of_all_images(out: Path) -> None:
    assert (out / "norm-0").exists() and (out / "norm-1").exists()


@pytest.mark.parametrize("kind", ["segmenter", "detector"])
def test_each_stage_of_zero_trains_alike(out: Path, kind: str) -> None:
    for rank in (0, 1):
        losses = json.loads((out / f"{rank}.json").read_text())
        whole = [losses[f"{kind} 0 {step}"] for step in range(STEPS)]
        # It learns, or a rank without a labelled pixel has no loss.
        assert len(set(whole)) == STEPS or (kind, rank, sum(whole)) == ("segmenter", 1, 0)
        for stage in (1, 2, 3):
            of_stage = [losses[f"{kind} {stage} {step}"] for step in range(STEPS)]
            assert of_stage == pytest.approx(whole, rel=1e-3), f"stage {stage}"
