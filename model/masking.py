"""The mask law (ADDP section 3.2 and addendum; MAGE section 3.2): how many tokens are masked, and
which.

    order of a sample's positions   7 2 9 4 | 0 3 | 8 1 5 6     random, keyed by the sample index
    masked in mask_t                -------
    masked in mask_next             -------------               a superset, of more noise

Ratios are keyed by a draw's index, which the caller makes of the global step or of a micro batch's
index in the run; orders are keyed by the global sample index. So masks are the same on any number
of ranks.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.randomness import orders, uniforms

MEAN, STD, LOW, HIGH = 0.55, 0.25, 0.5, 1.0  # the truncated normal of mask ratios
_NORMAL = NormalDist(MEAN, STD)
DROPPED = 0.5  # share of the tokens that MAGE keeps out of its encoder while it trains


class DenoisingMasks(NamedTuple):
    """The masks of a step: (B, L) bool, True where masked. mask_t is a subset of mask_next. masked:
    how many tokens of a sample mask_t masks."""

    mask_t: Tensor
    mask_next: Tensor
    masked: int


class MageMasks(NamedTuple):
    """The mask of a step of MAGE: (B, L) bool, True where masked. kept: (B, N) int64, ascending,
    the positions that enter the encoder. masked: how many tokens of a sample the mask masks."""

    mask: Tensor
    kept: Tensor
    masked: int


@cache
def ratio_table() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the 66 mask ratios cos(pi/2 * k/100) in [0.5, 1), ascending, as float32 values, and
    the probability of each."""
    ratios = np.cos(np.pi / 2 * np.arange(101) / 100).astype(np.float32)[::-1]
    ratios = ratios[(ratios >= LOW) & (ratios < HIGH)]
    weights = np.array([_NORMAL.pdf(float(r)) for r in ratios])
    return tuple(float(r) for r in ratios), tuple((weights / weights.sum()).tolist())


def masked_count(length: int, ratio: float) -> int:
    """Return how many of `length` tokens a ratio masks: ceil(L * r)."""
    return math.ceil(length * ratio)


def denoising_ratios(seed: int, draw: int) -> tuple[float, float]:
    """Return (r_t, r_next) of a draw, by its index. r_next lies 1 to 5 entries further in the
    table, or at its end."""
    ratios, weights = ratio_table()
    u = uniforms(seed, "mask-ratio", draw, 1, 2)[0]
    i = min(int(np.searchsorted(np.cumsum(weights), u[0], side="right")), len(ratios) - 1)
    j = min(i + 1 + int(5 * u[1]), len(ratios) - 1)
    return ratios[i], ratios[j]


def _ranks(seed: int, start: int, count: int, length: int) -> Tensor:
    """Return the rank of each position in its sample's random masking order, (count, length)."""
    order = torch.from_numpy(orders(seed, "mask-order", start, count, length))
    return order.argsort(1)


def denoising_masks(seed: int, draw: int, start: int, count: int, length: int) -> DenoisingMasks:
    """Return the masks of the samples with global indices start .. start+count-1, with the ratios
    of one draw. length: L, tokens of a sample."""
    r_t, r_next = denoising_ratios(seed, draw)
    ranks = _ranks(seed, start, count, length)
    n_t, n_next = masked_count(length, r_t), masked_count(length, r_next)
    return DenoisingMasks(ranks < n_t, ranks < n_next, n_t)


def mage_masks(seed: int, draw: int, start: int, count: int, length: int) -> MageMasks:
    """Return MAGE's masks, as `denoising_masks` does, with a continuous ratio; half of the tokens,
    all of them masked, stay out of the encoder."""
    u = float(uniforms(seed, "mage-ratio", draw, 1, 1)[0, 0])
    low, high = _NORMAL.cdf(LOW), _NORMAL.cdf(HIGH)
    ratio = _NORMAL.inv_cdf(low + u * (high - low))
    ranks = _ranks(seed, start, count, length)
    dropped = int(DROPPED * length)
    kept = (
        ranks.ge(dropped).int().argsort(dim=1, descending=True, stable=True)[:, : length - dropped]
    )
    masked = max(masked_count(length, ratio), dropped)
    return MageMasks(ranks < masked, kept, masked)
