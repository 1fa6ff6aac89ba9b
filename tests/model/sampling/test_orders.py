from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.sampling.orders import halton_ranks, last_in_order, least_confident, random_ranks


@pytest.mark.parametrize("ranks", [halton_ranks, random_ranks])
def test_an_order_is_a_permutation_keyed_by_the_sample(ranks: Callable[..., Tensor]) -> None:
    some = ranks(0, 5, 6, 64)
    assert (some.sort(1).values == torch.arange(64)).all()
    assert torch.equal(ranks(0, 8, 1, 64)[0], some[3])
    assert len({tuple(row.tolist()) for row in some}) > 1
    assert not torch.equal(ranks(1, 5, 6, 64), some)


def test_the_halton_order_spreads_tokens_evenly() -> None:
    """Each 16 in a row of 64 lie in all parts of the image, where a random order may leave one
    empty."""
    for row in halton_ranks(0, 0, 8, 64).view(8, 8, 8):
        chosen = (row < 16).float()
        parts = chosen.view(2, 4, 2, 4).sum((1, 3))
        assert parts.min() >= 2 and parts.max() <= 6


def test_the_least_confident_of_the_masked_stay_masked() -> None:
    logits = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
    # The last position is known, and least confident.
    mask = torch.tensor([[True, True, True, False]])
    ids, gumbel = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    chosen = least_confident(logits, ids, mask, gumbel=gumbel, scale=0.0, count=2)
    assert chosen.tolist() == [[False, True, True, False]]


def test_the_last_of_the_masked_stay_masked() -> None:
    ranks = torch.tensor([[0, 2, 1, 3]])
    mask = torch.tensor([[True, True, True, False]])  # the last in the order is known
    assert last_in_order(ranks, mask, 2).tolist() == [[False, True, True, False]]
