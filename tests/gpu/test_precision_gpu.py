"""What only a GPU shows of the precisions: float16 under DeepSpeed, and frozen networks in half precision."""

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
from tests.trainer.comparing import cut_back, losses, same_weights
from tests.trainer.launching import MAGE
from trainer.checkpoint import read_manifest
from trainer.config import RunConfig
from trainer.objectives import frozen_dtype
from trainer.precision import MODES, Precision
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_float16_resumes_bit_for_bit_with_its_loss_scale(
    stage: int, device: torch.device, tokens: Path, tmp_path: Path
) -> None:
    """With accumulation of four micro batches, which are added up in float32. Steps that are skipped until the scale
    fits have no loss, in both. Without a GPU the body is proved in bfloat16: DeepSpeed refuses float16 there."""
    from tests.gpu.processes import finish, training

    precision: Precision = "fp16" if device.type == "cuda" else "bf16"
    options = (*MAGE, f"data.tokens={tokens}", f"precision={precision}", f"zero_stage={stage}", "deterministic=true",
               "schedule.total=40", "checkpoint.every=20")  # fmt: skip
    whole = tmp_path / "whole"
    (output,) = finish(training(whole, *options))
    assert f"precision {precision}: {MODES[precision]}" in output
    assert math.isfinite(losses(whole)[-1])
    scaler = read_manifest(whole / "checkpoints" / "step-00000020").scaler
    assert precision != "fp16" or scaler["cur_scale"] > 0
    cut = cut_back(whole, tmp_path / "cut", 20)
    (output,) = finish(training(cut, *options))
    assert "resumed at step 20" in output and str(losses(cut)) == str(losses(whole))
    assert same_weights(RunFolder(cut).network, RunFolder(whole).network)


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
    errors = {p: float((found[p].x_t.float() - exact.x_t).square().mean()) for p in ("fp16", "bf16")}
    assert errors["fp16"] < 0.1 * errors["bf16"] and errors["bf16"] < 1e-3
    assert all(bool(noisy.target.isfinite().all()) for noisy in found.values())
