from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.masking import denoising_masks, denoising_ratios, mage_masks, masked_count, ratio_table
from model.randomness import orders, raw_bits, uniforms


def test_ratio_table_is_the_references(schedules: dict[str, Any]) -> None:
    ratios, weights = ratio_table()
    np.testing.assert_allclose(ratios, schedules["mask_ratios"], atol=1e-7)
    np.testing.assert_allclose(weights, schedules["mask_ratio_probabilities"], atol=1e-8)


GOLDEN_A, GOLDEN_B = 9677144133115996603, 7714151594646873121
GOLDEN_ORDER = [0, 1, 4, 2, 3, 5]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    step=st.integers(0, 10**7),
    start=st.integers(0, 10**9),
    side=st.integers(2, 16),
)
def test_denoising_masks(seed: int, step: int, start: int, side: int) -> None:
    length = side * side
    masks = denoising_masks(seed, step, start, 4, length)
    r_t, r_next = denoising_ratios(seed, step)
    table = ratio_table()[0]
    assert 1 <= table.index(r_next) - table.index(r_t) <= 5 or r_next == table[-1]
    assert (masks.mask_t.sum(1) == masks.masked).all() and masks.masked == masked_count(length, r_t)
    assert (masks.mask_next.sum(1) == masked_count(length, r_next)).all()
    assert not (masks.mask_t & ~masks.mask_next).any()
    split = [denoising_masks(seed, step, start + i, 1, length).mask_t for i in range(4)]
    assert torch.equal(torch.cat(split), masks.mask_t)  # any slicing over ranks draws the same


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), side=st.integers(2, 16))
def test_mage_masks(seed: int, step: int, side: int) -> None:
    length = side * side
    masks = mage_masks(seed, step, 0, 3, length)
    assert masks.kept.shape == (3, length - length // 2)
    assert (masks.kept.diff(dim=1) > 0).all()
    dropped = torch.ones(3, length, dtype=torch.bool).scatter(1, masks.kept, False)
    assert not (dropped & ~masks.mask).any()  # only masked tokens are left out
    counts = masks.mask.sum(1)
    assert (counts == counts[0]).all() and length / 2 <= counts[0] <= length


def test_ratios_follow_their_law() -> None:
    ratios, weights = ratio_table()
    drawn = np.array([denoising_ratios(7, step)[0] for step in range(20_000)])
    expected = float(np.dot(ratios, weights))
    assert abs(drawn.mean() - expected) < 0.005
    share = float((drawn == ratios[3]).mean())
    assert abs(share - weights[3]) < 0.005


@given(seed=st.integers(0, 2**63), start=st.integers(0, 2**60), per_item=st.integers(1, 33))
@settings(max_examples=60, deadline=None)
def test_random_words_are_a_function_of_the_index(seed: int, start: int, per_item: int) -> None:
    together = raw_bits(seed, "x", start, 5, per_item)
    assert together.shape == (5, per_item)
    np.testing.assert_array_equal(together[3], raw_bits(seed, "x", start + 3, 1, per_item)[0])
    assert not np.array_equal(together, raw_bits(seed, "y", start, 5, per_item))


def test_random_words_never_change() -> None:
    """A run that lasts weeks may be resumed with another NumPy: its draws must be the same."""
    assert raw_bits(1, "purpose", 5, 1, 2).tolist() == [[GOLDEN_A, GOLDEN_B]]
    assert orders(1, "purpose", 5, 1, 6).tolist() == [GOLDEN_ORDER]
    u = uniforms(0, "u", 0, 1000, 4)
    assert u.min() > 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
