"""What a tokenizer keeps of held-out images: PSNR, and how much of its codebook they use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from model.vq import VQTokenizer
from trainer.evaluation.benchmarks.base import Outcome
from trainer.evaluation.crops import Chunk
from trainer.evaluation.measures.grids import png, zoom_of
from trainer.evaluation.task import Task

_SHOWN = 8  # images, with their reconstructions below


def measure(task: Task) -> Outcome:
    """Reconstruct held-out images, by all ranks together. Raises ADDPError."""
    tokenizer, crops = task.network, task.crops("val")
    assert isinstance(tokenizer, VQTokenizer)
    chunks = task.over_images("images", crops, lambda chunk: _reconstruct(tokenizer, chunk))
    if task.collectives.rank:
        return Outcome({})
    squared, values = sum(error for error, _, _ in chunks), sum(count for _, count, _ in chunks)
    used = torch.stack([codes for _, _, codes in chunks]).any(0)
    metrics = {
        "psnr": -10 * math.log10(squared / values),
        "codebook_used": float(used.float().mean()),
    }
    shown = crops.read(0).on(task.device)[:_SHOWN]
    with torch.no_grad():
        pairs = torch.cat([shown, tokenizer.reconstruct(shown)]).cpu()
    grid = image_grid(pairs, columns=len(shown), zoom=zoom_of(task.image_size))
    return Outcome(metrics, {"reconstructions": png(grid)})


@torch.no_grad()
def _reconstruct(tokenizer: VQTokenizer, chunk: Chunk) -> tuple[float, int, Tensor]:
    """Reconstruct images.

    Returns the sum of squared errors of values in [0, 1], the number of values, and which of the K
    codes are used, (K,) bool.
    """
    images = chunk.on(tokenizer.codebook.device)
    ids = tokenizer.encode(images)
    used = torch.zeros(tokenizer.config.codebook_size, dtype=torch.bool)
    used[ids.flatten().cpu()] = True
    reconstructed = tokenizer.decode(tokenizer.embed(ids)).clamp(0, 1)
    error = (reconstructed - images).square().sum(dtype=torch.float64)
    return float(error), images.numel(), used
