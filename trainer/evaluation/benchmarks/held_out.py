"""Held-out figures: PSNR and codebook use of a tokenizer, masked-token cross-entropy of a predictor
and of ADDP."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.streaming.loader import TokenLoader
from model.addp import ADDP
from model.denoising import FrozenNetworks
from model.masking import DenoisingMasks, denoising_masks, masked_count
from model.predictor import TokenPredictor
from model.randomness import orders
from model.vq import VQTokenizer

Predict = Callable[[Tensor, DenoisingMasks], Tensor]
_BATCH = 64
MASK_DRAWS = 8  # mask ratios that an image is evaluated at
RATIOS = (0.99, 0.9, 0.75, 0.6, 0.51)  # shares of unreliable tokens that are shown
_SEED = 20230609  # of the masks: the same for every network that is compared


@torch.no_grad()
def tokenizer_part(tokenizer: VQTokenizer, pixels: Tensor) -> tuple[float, int, Tensor]:
    """pixels: uint8 (B, 3, H, W) -> (squared error, values, which codes are used (K,) bool)."""
    device = tokenizer.codebook.device
    images = pixels.to(device).float() / 255
    ids = tokenizer.encode(images)
    used = torch.zeros(tokenizer.config.codebook_size, dtype=torch.bool)
    used[ids.flatten().cpu()] = True
    error = (
        (tokenizer.decode(tokenizer.embed(ids)).clamp(0, 1) - images)
        .square()
        .sum(dtype=torch.float64)
    )
    return float(error), images.numel(), used


def tokenizer_figures(parts: list[tuple[float, int, Tensor]]) -> dict[str, float]:
    """PSNR of the mean squared error over all images (dB), and the share of the codebook that they
    use."""
    squared, values = sum(p[0] for p in parts), sum(p[1] for p in parts)
    used = torch.stack([p[2] for p in parts]).any(0)
    return {"psnr": -10 * math.log10(squared / values), "codebook_used": float(used.float().mean())}


def unigram_cross_entropy(frequencies: NDArray[np.float64], ids: Tensor) -> float:
    """Nats a token of held-out tokens under the code frequencies of the training tokens."""
    return float(-np.log(frequencies)[ids.numpy().ravel()].mean())


@torch.no_grad()
def masked_nats(predict: Predict, ids: Tensor, draw: int, codes: int) -> tuple[float, int]:
    """(nats, tokens) at positions masked in mask_t, over K codes, at one of `MASK_DRAWS` ratios of
    the training law.

    predict(ids, masks) -> logits over K (B, L, K).
    """
    total, count = 0.0, 0
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        masks = denoising_masks(_SEED, draw, start, len(part), part.shape[1])
        masks = masks._replace(
            mask_t=masks.mask_t.to(ids.device), mask_next=masks.mask_next.to(ids.device)
        )
        logits = predict(part, masks)[..., :codes]
        nats = F.cross_entropy(logits.float().transpose(1, 2), part, reduction="none")
        total += float(nats[masks.mask_t].sum())
        count += int(masks.mask_t.sum())
    return total, count


def predictor_of(network: TokenPredictor | ADDP, frozen: FrozenNetworks | None) -> Predict:
    """(ids, masks) -> logits; ADDP's on x_t decoded as in training."""
    if isinstance(network, TokenPredictor):
        return lambda ids, masks: network.logits(ids, masks.mask_t)
    assert frozen is not None
    return lambda ids, masks: network.logits(
        frozen(ids, masks).x_t, ids, masks.mask_t, ids.shape[1] - masks.masked
    )


def token_data(held_out: str, train: str) -> tuple[Tensor, NDArray[np.float64]]:
    """Held-out ids (N, L) int64, and the frequencies of the codes (K,) in the training set."""
    ids = TokenLoader(held_out, global_batch=1, seed=0).all_tokens()
    return torch.from_numpy(ids.astype(np.int64)), TokenLoader(
        train, global_batch=1, seed=0
    ).code_frequencies()


@torch.no_grad()
def noisy_images(frozen: FrozenNetworks, pixels: Tensor) -> Tensor:
    """What ADDP sees: for each of the images (N, 3, H, W) in [0, 1] the image, x_t at falling
    shares of unreliable tokens, and its reconstruction, (N * columns, 3, H, W)."""
    ids = frozen.tokenizer.encode(pixels)
    length = ids.shape[1]
    ranks = torch.from_numpy(orders(0, "report", 0, len(ids), length)).argsort(1).to(ids.device)
    columns = [pixels]
    for ratio in RATIOS:
        count = masked_count(length, ratio)
        columns.append(frozen(ids, DenoisingMasks(ranks < count, ranks < count, count)).x_t)
    columns.append(frozen.tokenizer.decode(frozen.tokenizer.embed(ids)))
    return torch.stack(columns, 1).flatten(0, 1)
