"""What an engine computes in: float32 is float32, sums of gradients and the optimizer's state are
float32."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from model.config import Geometry, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import denoising_masks
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from tests.trainer.worlds import Ranks
from trainer.config.schema import RunConfig
from trainer.engine import engine as engine_module
from trainer.engine.engine import Engine, deepspeed_config, start_distributed
from trainer.engine.precision import Precision
from trainer.objectives.addp import frozen_dtype
from trainer.timing import Stopwatch

REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter")


MODES = [*(("bf16", stage) for stage in (1, 2, 3)), *(("bf16-mixed", stage) for stage in range(4))]
STEPS = 3
CLIP = 0.01  # the gradients are longer
PRECISIONS = get_args(Precision)
Seen = dict[tuple[str, int], dict[str, Any]]


class Network(nn.Module):
    """Says what it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.seen: set[str] = set()
        self.layer.register_forward_hook(self._look)  # where ZeRO-3 has gathered the weights

    def _look(self, layer: nn.Module, inputs: Any, product: Tensor) -> None:
        weight = self.layer.weight
        rounded = "" if bool((weight != weight.bfloat16()).any()) else ", rounded"
        self.seen.add(f"weights {weight.dtype}{rounded}, products {product.dtype}")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)).float().square().mean()


def observe(arguments: list[str]) -> int:
    """A rank that takes steps in each of the modes; rank 0 writes down what it saw."""
    out, rows = Path(arguments[0]), []
    watching, summed, largest = False, set(), 0

    def watched(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal largest
            for value in (*args, *more.values()) if watching else ():
                for tensor in value if isinstance(value, list) else [value]:
                    if (
                        isinstance(tensor, Tensor)
                        and tensor.is_floating_point()
                        and tensor.numel() >= 64
                    ):
                        summed.add(str(tensor.dtype))
                        largest = max(largest, tensor.numel())
            return function(*args, **more)

        return call

    for name in REDUCTIONS:  # before the start, when DeepSpeed takes some of them
        setattr(torch.distributed, name, watched(getattr(torch.distributed, name)))
    rank, world_size, _ = start_distributed()
    engine_module.BUCKET = 64  # elements: the layer's weights fill one, its biases another
    for precision, stage in MODES:
        values = {
            "precision": precision,
            "zero_stage": stage,
            "batch": {"global_batch": 16, "micro": 4},
            "optimizer": {"clip": CLIP},
        }
        torch.manual_seed(0)
        network = Network()
        engine = Engine(network, RunConfig.model_validate(values), 2, world_size)
        batches = torch.randn(STEPS, world_size, 2, 4, 64)[:, rank]
        watching = True
        results = [
            engine.optimizer_step([{"x": x} for x in step], 1e-3, Stopwatch(False))
            for step in batches
        ]
        watching = False
        squares = [v.square().sum() for key, _, v in engine.owned() if key == "exp_avg"]
        moments = torch.stack(squares).sum() if squares else torch.zeros(())
        torch.distributed.all_reduce(moments)
        weights = [(f.weights().clone(), f.weights()) for f in engine.partition.held]
        nothing = [{"x": torch.full((4, 64), torch.nan if rank else 1.0)}] * 2  # on one rank only
        skipped = engine.optimizer_step(nothing, 1e-3, Stopwatch(False))
        rows.append(
            {
                "skipped": (
                    float(skipped.norm),
                    bool(skipped.applied),
                    all(torch.equal(*pair) for pair in weights),
                ),
                "engine": str(engine._engine.communication_data_type),
                "summed": sorted(summed),
                "largest": largest,
                "state": sorted({f"{key} {v.dtype}" for key, _, v in engine.owned()}),
                "seen": sorted(network.seen),
                "losses": [float(result.loss) for result in results],
                "norms": [float(result.norm) for result in results],
                "moments": float(moments.sqrt()),
            }
        )
        summed.clear()
        largest = 0
    if rank == 0:
        out.write_text(json.dumps(rows))
    return 0


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Of two ranks, by precision and ZeRO stage."""
    folder = tmp_path_factory.mktemp("engine")
    codes, output = Ranks(observe, [str(folder / "seen.json")], 2, folder / "log").wait()
    assert codes == [0, 0], output
    return dict(zip(MODES, json.loads((folder / "seen.json").read_text()), strict=True))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode[0]}-{mode[1]}")
def test_sums_and_states_are_float32(mode: tuple[str, int], seen: Seen) -> None:
    row = seen[mode]
    assert row["engine"] == "torch.float32" and row["summed"] == ["torch.float32"], row
    assert row["state"] == [f"{key} torch.float32" for key in ("exp_avg", "exp_avg_sq", "weights")]


def test_without_zero_gradients_are_sent_in_buckets(seen: Seen) -> None:
    assert seen["bf16-mixed", 0]["largest"] == 64 * 64


def test_mixed_precision_rounds_products_only(seen: Seen) -> None:
    """In ZeRO-3 too, where DeepSpeed by itself would gather the weights of linear layers in
    bfloat16."""
    for (precision, stage), row in seen.items():
        weights = "float32" if precision == "bf16-mixed" else "bfloat16, rounded"
        assert row["seen"] == [f"weights torch.{weights}, products torch.bfloat16"], (stage, row)


def test_stages_train_alike_in_mixed_precision(seen: Seen) -> None:
    alone, *others = (seen["bf16-mixed", stage] for stage in range(4))
    for row in others:
        assert row["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        assert row["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert row["moments"] == pytest.approx(alone["moments"], rel=1e-5)
    assert alone["losses"][-1] != alone["losses"][0]


def test_clipped_gradients_are_as_long_as_they_may_be(seen: Seen) -> None:
    """The norm is that before, and the optimizer sees what is clipped."""
    for row in seen.values():
        assert min(row["norms"]) > 2 * CLIP
        longest = CLIP * (1 - 0.9**STEPS)  # the first of AdamW's betas
        assert 0.5 * longest < row["moments"] <= 1.001 * longest, row


def test_a_step_that_is_skipped_has_no_finite_norm(seen: Seen) -> None:
    for mode, row in seen.items():
        norm, applied, unchanged = row["skipped"]
        assert not math.isfinite(norm) and not applied and unchanged, (mode, row["skipped"])


def overflow(arguments: list[str]) -> int:
    """A rank in fp16, which DeepSpeed computes on any CPU once it is told that it can."""
    from deepspeed.accelerator import get_accelerator

    _, world_size, _ = start_distributed()
    accelerator: Any = type(get_accelerator())
    accelerator.is_fp16_supported = lambda _: True
    engine_module.check_device = lambda _: None
    values = {"precision": "fp16", "batch": {"global_batch": 8, "micro": 4}}
    for stage in (1, 2, 3):
        engine = Engine(
            Network(), RunConfig.model_validate(values | {"zero_stage": stage}), 2, world_size
        )
        before = engine.scaler()
        for x in [torch.randn(4, 64), *[torch.full((4, 64), torch.nan)] * 40, torch.randn(4, 64)]:
            result = engine.optimizer_step([{"x": x}] * 2, 1e-3, Stopwatch(False))
            finite = bool(x.isfinite().all())
            assert result.applied == result.norm.isfinite() == finite, (stage, result)
        assert before["cur_scale"] > engine.scaler()["cur_scale"] == 1, (stage, before)
        engine.fill(lambda key, name, start, length: torch.ones(length), {}, before, 1, False)
        assert engine.scaler() == before
    return 0


def test_float16_bears_as_many_skipped_steps_as_a_run_allows(tmp_path: Path) -> None:
    """DeepSpeed ends with an error of its own once its loss scale is 1, after some 18:
    `health.max_nonfinite_steps` decides."""
    codes, output = Ranks(overflow, [], 1, tmp_path / "log").wait()
    assert codes == [0], output


def start(arguments: list[str]) -> int:
    """A rank where TF32 was allowed, which says whether it still is."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    start_distributed()
    print(
        "after the start:",
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        flush=True,
    )
    return 0


def test_training_uses_no_tf32(tmp_path: Path) -> None:
    codes, output = Ranks(start, [], 1, tmp_path / "log").wait()
    assert codes == [0] and "after the start: False highest" in output


STEPS_OF_ONE_RANK = """
import sys, torch
from tests.trainer.engine.test_engine import Network
from trainer.config.schema import RunConfig
from trainer.engine.engine import Engine, start_distributed
from trainer.timing import Stopwatch

start_distributed()
for stage in (0, 1, 2):
    for name in ("adamw", "lamb"):
        config = RunConfig.model_validate({
            "precision": "fp32", "zero_stage": stage, "batch": {"global_batch": 4, "micro": 4},
            "optimizer": {"name": name},
        })
        engine = Engine(Network(), config, 1, 1)
        result = engine.optimizer_step([{"x": torch.ones(4, 64)}], 1e-3, Stopwatch(False))
        assert result.applied
print("loaded:", *sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_what_is_not_compiled_loads_no_compiler() -> None:
    command = [sys.executable, "-c", STEPS_OF_ONE_RANK]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0 and "loaded:\n" in done.stdout, done.stdout + done.stderr
    assert "untested" not in done.stdout + done.stderr


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_deepspeed_is_told(precision: str) -> None:
    """To sum in float32 over ranks, and over the micro batches of a step as well."""
    told = deepspeed_config(RunConfig.model_validate({"precision": precision}), 1, 2, 10)
    assert told["communication_data_type"] == "fp32"
    half = precision in ("bf16", "fp16")
    assert told.get("data_types") == ({"grad_accum_dtype": "fp32"} if half else None)
    assert ("torch_autocast" in told) == (precision == "bf16-mixed") and ("fp16" in told) == (
        precision == "fp16"
    )


def test_frozen_networks_take_the_half_precision_of_the_run() -> None:
    dtypes = {p: frozen_dtype(RunConfig.model_validate({"precision": p})) for p in PRECISIONS}
    assert dtypes == {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "bf16-mixed": torch.bfloat16,
        "fp16": torch.float16,
    }


def test_frozen_networks_deviate_less_in_float16(tokenizer: VQTokenizer) -> None:
    torch.manual_seed(0)
    geometry = Geometry.of(tokenizer.config)
    predictor = TokenPredictor(geometry, TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    networks = FrozenNetworks(tokenizer, predictor)
    ids = torch.randint(0, geometry.codebook_size, (4, geometry.tokens))
    masks, outputs = denoising_masks(0, 0, 0, 4, geometry.tokens), {}
    for precision in ("fp32", "fp16", "bf16"):
        dtype = frozen_dtype(RunConfig.model_validate({"precision": precision}))
        outputs[precision] = copy.deepcopy(networks).to(dtype)(ids, masks)
    exact = outputs["fp32"]
    for of in (lambda noisy: noisy.x_t.float(), lambda noisy: noisy.target.float()):
        half, brain = (
            float((of(outputs[p]) - of(exact)).norm() / of(exact).norm()) for p in ("fp16", "bf16")
        )
        assert 0 < half < 0.5 * brain and brain < 0.05
