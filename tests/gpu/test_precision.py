"""What only a GPU shows of the precisions: float16 under DeepSpeed, and each precision against
float32."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import denoising_masks
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from tests.gpu.processes import finish, processes, training
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.launching import MAGE
from trainer.checkpointing.format import read_manifest
from trainer.config.schema import RunConfig
from trainer.objectives.addp import frozen_dtype

pytestmark = pytest.mark.gpu
STAGES = (1, 2, 3)


def test_float16_resumes_bit_for_bit_with_its_loss_scale(
    tokens: Path, device: torch.device, tmp_path: Path
) -> None:
    """With accumulation of two micro batches, which are added up in float32."""

    def run(stage: int, folder: Path) -> list[str]:
        return training(
            folder,
            *MAGE,
            f"data.tokens={tokens}",
            "precision=fp16",
            f"zero_stage={stage}",
            "deterministic=true",
            "batch.micro=4",
            "schedule.total=40",
            "checkpoint.every=20",
        )

    whole = [tmp_path / f"whole-{stage}" for stage in STAGES]
    if device.type == "cpu":
        assert [done.code for done in processes([run(1, whole[0])])] == [78]  # refused there
        return
    for output in finish(*(run(*pair) for pair in zip(STAGES, whole, strict=True))):
        assert "precision fp16: float16 weights, residuals and products" in output, output
    cut = [
        cut_back(folder, tmp_path / f"cut-{stage}", 20)
        for stage, folder in zip(STAGES, whole, strict=True)
    ]
    resumed = finish(*(run(*pair) for pair in zip(STAGES, cut, strict=True)))
    for folder, half, output in zip(whole, cut, resumed, strict=True):
        assert math.isfinite(losses(folder)[-1])
        assert read_manifest(folder / "checkpoints" / "step-00000020").scaler["cur_scale"] > 0
        assert "resumed at step 20" in output and same_end(folder, half), output


def test_frozen_networks_deviate_less_in_float16_than_in_bfloat16(device: torch.device) -> None:
    """Of a tokenizer and predictor of the demo's size with fresh weights."""
    torch.manual_seed(0)
    sizes = TokenizerConfig(size="demo")  # type: ignore[call-arg]
    geometry = Geometry.of(sizes)
    predictor = TokenPredictor(geometry, TransformerConfig(size="demo"))  # type: ignore[call-arg]
    frozen = FrozenNetworks(VQTokenizer(sizes), predictor)
    ids = torch.randint(0, geometry.codebook_size, (8, geometry.tokens)).to(device)
    masks = denoising_masks(0, 0, 0, 8, geometry.tokens)
    masks = masks._replace(mask_t=masks.mask_t.to(device), mask_next=masks.mask_next.to(device))
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        dtype = frozen_dtype(RunConfig.model_validate({"precision": precision}))
        found[precision] = copy.deepcopy(frozen).to(device, dtype)(ids, masks)
    exact = found["fp32"]
    errors = {
        p: float((found[p].x_t.float() - exact.x_t).square().mean()) for p in ("fp16", "bf16")
    }
    assert errors["fp16"] < 0.1 * errors["bf16"] and errors["bf16"] < 1e-3
    assert all(bool(noisy.target.isfinite().all()) for noisy in found.values())
