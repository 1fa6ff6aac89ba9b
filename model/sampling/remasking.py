"""Remasking (after ReMDM, arXiv 2503.00307): known tokens become unknown again, so that errors are
mended.

    before    known k k k k k k    masked . . . . . .
    returns         k k                                  any two
    after     known     k k k k    masked . . . . . .    two others became known: as many as before
                                k k

This happens while half of the tokens are masked: the network learned from no less. Tokens that
generation was given never return.
"""

from __future__ import annotations

import torch
from torch import Tensor


def returning(candidates: Tensor, noise: Tensor, count: int) -> Tensor:
    """Choose `count` of the candidates, (B, L) bool, by their noise, (B, L). There are at least as
    many."""
    order = noise.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(candidates).scatter(1, order, True)
