"""Which tokens stay masked: the least confident ones (published), or the last ones of an order that
is fixed in advance.

An order is a rank for each position, (B, L): a step makes those known that have the lowest.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from model.randomness import orders, uniforms


def least_confident(
    logits: Tensor, ids: Tensor, mask: Tensor, *, gumbel: Tensor, scale: float, count: int
) -> Tensor:
    """Return the `count` least confident positions, (B, L) bool. The confidence is log p(id) +
    scale * gumbel; known positions have +inf."""
    logp = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    confidence = (logp + scale * gumbel).masked_fill(~mask, math.inf)
    least = confidence.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(mask).scatter(1, least, True)


def last_in_order(ranks: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the `count` masked positions of the highest ranks, (B, L) bool."""
    last = ranks.masked_fill(~mask, -1).argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(mask).scatter(1, last, True)


def random_ranks(seed: int, start: int, count: int, length: int) -> Tensor:
    """Return the ranks of a uniform random order for each of the samples start .. start+count-1,
    (count, length)."""
    return torch.from_numpy(orders(seed, "generate/order", start, count, length)).argsort(1)


def halton_ranks(seed: int, start: int, count: int, length: int) -> Tensor:
    """Return the ranks of the Halton order (arXiv 2503.17076) for each sample, (count, length).

    Tokens that one step makes known lie far apart, and so depend less on each other. Each sample
    begins at a place of its own in the sequence, as in the paper's code.
    """
    begin = torch.from_numpy(uniforms(seed, "generate/halton", start, count, 1) * length).long()
    return (torch.tensor(_halton_ranks(int(length**0.5))) - begin) % length


@cache
def _halton_ranks(grid: int) -> tuple[int, ...]:
    """Return when a Halton sequence in bases 2 (rows) and 3 (columns) first meets each cell of a
    grid, in raster order."""
    ranks: dict[int, int] = {}
    number = 0
    while len(ranks) < grid * grid:
        row, column = (int(_radical_inverse(number, base) * grid) for base in (2, 3))
        ranks.setdefault(row * grid + column, len(ranks))
        number += 1
    return tuple(ranks[cell] for cell in range(grid * grid))


def _radical_inverse(number: int, base: int) -> float:
    """Return the number with its digits mirrored at the point: 6 = 110 in base 2 gives 0.011."""
    mirrored, unit = 0.0, 1.0
    while number:
        unit /= base
        number, digit = divmod(number, base)
        mirrored += digit * unit
    return mirrored
