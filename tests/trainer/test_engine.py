"""What an engine computes in: float32 is float32, sums of gradients and the optimizer's state are float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.worlds import Ranks
from trainer.config import RunConfig
from trainer.engine import Engine, deepspeed_config, start_distributed
from trainer.timing import Stopwatch

REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)).float().square().mean()


def facts(arguments: list[str]) -> int:
    """A rank that takes a step; rank 0 writes down what it saw."""
    out, values = arguments
    watching, summed = False, set()

    def watched(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            for value in (*args, *more.values()) if watching else ():
                for tensor in value if isinstance(value, list) else [value]:
                    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() >= 64:
                        summed.add(str(tensor.dtype))
            return function(*args, **more)

        return call

    for name in REDUCTIONS:  # before the start, when DeepSpeed takes some of them
        setattr(torch.distributed, name, watched(getattr(torch.distributed, name)))
    rank, world_size, _ = start_distributed()
    engine = Engine(Network(), RunConfig.model_validate(json.loads(values)), 1, world_size)
    watching = True
    engine.optimizer_step([{"x": torch.randn(4, 64)}], 1e-3, Stopwatch(False))
    seen = {
        "engine": str(engine._engine.communication_data_type), "summed": sorted(summed),
        "state": sorted({f"{kind} {v.dtype}" for kind, _, v in engine.owned()}),
    }  # fmt: skip
    if rank == 0:
        Path(out).write_text(json.dumps(seen))
    return 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sums_and_states_are_float32(stage: int, tmp_path: Path) -> None:
    values = {"precision": "bf16", "zero_stage": stage, "batch": {"global_batch": 8, "micro": 4}}
    out = tmp_path / "facts.json"
    codes, output = Ranks(facts, [str(out), json.dumps(values)], 2, tmp_path / "log").wait()
    assert codes == [0, 0], output
    seen = json.loads(out.read_text())
    assert seen["engine"] == "torch.float32" and seen["summed"] == ["torch.float32"], seen
    assert seen["state"] == [f"{kind} torch.float32" for kind in ("exp_avg", "exp_avg_sq", "weights")]


def start(arguments: list[str]) -> int:
    """A rank where TF32 was allowed, which says whether it still is."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    start_distributed()
    print("after the start:", torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), flush=True)
    return 0


def test_training_uses_no_tf32(tmp_path: Path) -> None:
    codes, output = Ranks(start, [], 1, tmp_path / "log").wait()
    assert codes == [0] and "after the start: False highest" in output


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_deepspeed_is_told_to_sum_in_float32(precision: str) -> None:
    config = RunConfig.model_validate({"precision": precision})
    assert deepspeed_config(config, 1, 2, 10)["communication_data_type"] == "fp32"
