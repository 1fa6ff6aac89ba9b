"""What only a GPU shows of the precisions: float16 under DeepSpeed, and each precision against float32."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import denoising_masks
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from tests.conftest import FIXTURES
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.launching import MAGE, train
from trainer.checkpoint import read_manifest
from trainer.config import RunConfig
from trainer.objectives import frozen_dtype
from trainer.trajectory import main

pytestmark = pytest.mark.gpu
FOLDER = FIXTURES / "trajectory"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_float16_resumes_bit_for_bit_with_its_loss_scale(stage: int, tokens: Path, tmp_path: Path) -> None:
    """With accumulation of two micro batches, which are added up in float32."""
    options = (*MAGE, f"data.tokens={tokens}", "precision=fp16", f"zero_stage={stage}", "deterministic=true",
               "batch.micro=4", "schedule.total=40", "checkpoint.every=20")  # fmt: skip
    whole = tmp_path / "whole"
    code, output = train(whole, *options, processes=1)
    assert code == 0 and "precision fp16: float16 weights, residuals and products" in output, output
    assert math.isfinite(losses(whole)[-1])
    assert read_manifest(whole / "checkpoints" / "step-00000020").scaler["cur_scale"] > 0
    cut = cut_back(whole, tmp_path / "cut", 20)
    code, output = train(cut, *options, processes=1)
    assert code == 0 and "resumed at step 20" in output, output
    assert same_end(whole, cut)


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16-mixed", "float16"])
def test_the_trajectory_in_each_precision(dtype: str, tmp_path: Path) -> None:
    """One rank in this process would leave a process group behind: by the launcher's own command."""
    from cluster.launch import launcher_command, run_group

    report = tmp_path / "report.json"
    options = [str(FOLDER), "--device", "cuda", "--dtype", dtype, "--report", str(report)]
    code = run_group(launcher_command(1, main.__module__, options)).code
    found = json.loads(report.read_text())
    assert code == 0 and found["holds"], {k: v for k, v in found["quantities"].items() if not v["holds"]}


def test_frozen_networks_deviate_less_in_float16_than_in_bfloat16() -> None:
    """Of a tokenizer and predictor of the demo's size with fresh weights."""
    torch.manual_seed(0)
    sizes = TokenizerConfig(size="demo")  # type: ignore[call-arg]
    geometry = Geometry.of(sizes)
    predictor = TokenPredictor(geometry, TransformerConfig(size="demo"))  # type: ignore[call-arg]
    frozen = FrozenNetworks(VQTokenizer(sizes), predictor)
    ids = torch.randint(0, geometry.codebook_size, (8, geometry.tokens)).cuda()
    masks = denoising_masks(0, 0, 0, 8, geometry.tokens)
    masks = masks._replace(mask_t=masks.mask_t.cuda(), mask_next=masks.mask_next.cuda())
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        dtype = frozen_dtype(RunConfig.model_validate({"precision": precision}))
        found[precision] = copy.deepcopy(frozen).to("cuda", dtype)(ids, masks)
    exact = found["fp32"]
    errors = {p: float((found[p].x_t.float() - exact.x_t).square().mean()) for p in ("fp16", "bf16")}
    assert errors["fp16"] < 0.1 * errors["bf16"] and errors["bf16"] < 1e-3
    assert all(bool(noisy.target.isfinite().all()) for noisy in found.values())
