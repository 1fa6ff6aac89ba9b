"""Dense transfer on the GPU, at the sizes of publications."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from model.dense.regions import pooled
from model.dense.windows import GridAttention

pytestmark = pytest.mark.gpu


def torchvisions(maps: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """Its operator; on a CPU, its formula in Python, as it is written."""
    from model.dense import mask_rcnn

    if not maps.is_cuda:
        written: Any = importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__
        return written(maps, regions, scale, size, size, -1, True)
    assert mask_rcnn._OPERATORS, "torchvision's operators do not load beside this PyTorch"
    return mask_rcnn._by_operator(maps, regions, size, scale)


def test_pooling_is_torchvisions(device: torch.device) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 24, 16, device=device)
    corners = torch.rand(9, 2, device=device) * 30
    boxes = torch.cat([corners, corners + 1 + torch.rand(9, 2, device=device) * 32], 1)
    regions = torch.cat([torch.arange(9, device=device)[:, None] % 2, boxes], 1)
    for size in (7, 14):
        theirs = torchvisions(maps, regions, size, 0.25)
        torch.testing.assert_close(pooled(maps, regions, size, 0.25), theirs, rtol=1e-4, atol=1e-4)


def test_no_matrix_of_scores_lies_in_memory(device: torch.device) -> None:
    """A global block at 1024 pixels: 12 heads of 4096 x 4096 scores are 384 MiB in bfloat16."""
    on_gpu = device.type == "cuda"
    side = 64 if on_gpu else 8
    attention = GridAttention(768, 12, 0.0, size=0, side=side).to(device)
    x = torch.randn(1, side, side, 768, device=device, requires_grad=True)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = attention(x)
    result.float().square().mean().backward()
    assert attention.rel_pos_h.grad is not None and attention.rel_pos_h.grad.any()
    if on_gpu:
        assert torch.cuda.max_memory_allocated(device) - before < 384 * 2**20
