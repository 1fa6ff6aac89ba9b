"""Remasking (after ReMDM, arXiv 2503.00307): known tokens become unknown again, so that errors are
mended.

    before    known k k k k k k    masked . . . . . .
    returns         k k                                  any, or those that the critic doubts most
    after     known     k k k k    masked . . . . . .    two others became known: as many as before
                                k k

This happens while half of the tokens are masked: the network learned from no less. Tokens that
generation was given never return.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.predictor import TokenPredictor


class Returned(NamedTuple):
    """Tokens that become unknown again. where: (B, L) bool. expected: probabilities (B, L, K) of
    what stands there now, or (1, L, K), which the next image shows."""

    where: Tensor
    expected: Tensor


def any_returned(candidates: Tensor, noise: Tensor, count: int, expected: Tensor) -> Returned:
    """Take back any `count` of the candidates, (B, L) bool, by their noise, (B, L)."""
    return Returned(_lowest(noise, candidates, count), expected)


def doubted_returned(
    critic: TokenPredictor,
    ids: Tensor,
    mask: Tensor,
    candidates: Tensor,
    *,
    noise: Tensor,
    count: int,
) -> Returned:
    """Take back the `count` candidates that the predictor finds least likely.

    A predictor cannot judge a token that it sees. So twice `count` candidates, by their noise, are
    hidden from it, and it judges these.
    """
    hidden = _lowest(noise, candidates, 2 * count)
    expected = critic.probabilities(ids, mask | hidden)
    likely = expected.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return Returned(_lowest(likely, hidden, count), expected)


def _lowest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Return the `count` positions of the lowest values among some, (B, L) bool. There are at least
    as many."""
    order = values.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(among).scatter(1, order, True)
