"""The loss both transformers share."""

from __future__ import annotations

import torch

from model.transformer import smoothed_cross_entropy


def test_samples_of_weight_0_do_not_count() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(4, 6, 9), torch.rand(4, 6) < 0.6
    ids = torch.randint(0, 9, (4, 6))
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0])
    kept = weights.bool()
    expected = smoothed_cross_entropy(logits[kept], ids[kept], mask[kept], 0.1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, ids, mask, 0.1, weights), expected)
    ones = smoothed_cross_entropy(logits, ids, mask, 0.1, torch.ones(4))
    torch.testing.assert_close(ones, smoothed_cross_entropy(logits, ids, mask, 0.1))
    # No sample: no loss, no NaN.
    assert smoothed_cross_entropy(logits, ids, mask, 0.1, torch.zeros(4)) == 0
