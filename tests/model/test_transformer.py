"""The head and the loss that both transformers share."""

from __future__ import annotations

import torch

from model.transformer import MlmHead, product_with_rows, smoothed_cross_entropy


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


def test_rows_that_fill_up_a_product_change_nothing() -> None:
    torch.manual_seed(0)
    x, rows = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True), torch.randn(37, 8)
    results = []
    for multiple in (1, 16, 37, 64):
        scores = product_with_rows(x, rows.double(), multiple)
        (gradient,) = torch.autograd.grad(scores.square().sum(), x)
        results.append((scores, gradient))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_logits_of_the_first_entries() -> None:
    head, x, words = MlmHead(8, 37), torch.randn(2, 3, 8), torch.randn(37, 8)
    torch.nn.init.normal_(head.bias)
    torch.testing.assert_close(head(x, words, 16), head(x, words)[..., :16])
