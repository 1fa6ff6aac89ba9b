"""Intervals of shares, and of how far one thing is ahead of another on the same images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from trainer.evaluation.measures.intervals import difference_interval, share_interval, shares


@pytest.mark.parametrize(("right", "count"), [(0, 7), (1, 2), (101, 185), (185, 185)])
def test_the_interval_of_a_share_is_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert share_interval(right / count, count) == pytest.approx(tuple(expected), abs=1e-6)


def two_that_agree(count: int) -> tuple[Tensor, Tensor]:
    """Right and wrong of two things that find the same images easy."""
    drawn = np.random.default_rng(0).random((3, count))
    easy = drawn[0] < 0.5
    return (
        torch.from_numpy(np.where(easy, drawn[1] < 0.95, drawn[1] < 0.15)),
        torch.from_numpy(np.where(easy, drawn[2] < 0.85, drawn[2] < 0.05)),
    )


def test_the_interval_of_a_difference_is_that_of_drawing_images_again() -> None:
    first, second = two_that_agree(400)
    found = shares({"trained": {"top1": first}, "pixels": {"top1": second}})
    difference = (first.double() - second.double()).numpy()
    assert found["top1_over_pixels"] == pytest.approx(difference.mean())
    rows = np.random.default_rng(1).integers(0, len(difference), (4000, len(difference)))
    low, high = np.quantile(difference[rows].mean(1), (0.025, 0.975))
    ends = found["top1_over_pixels_low"], found["top1_over_pixels_high"]
    assert ends == pytest.approx((low, high), abs=0.01)
    # Much narrower than what the two intervals by themselves would say.
    apart = [found[f"{kind}top1_high"] - found[f"{kind}top1_low"] for kind in ("", "pixels_")]
    assert ends[1] - ends[0] < 0.75 * np.hypot(*apart)
    assert found["pixels_top1"] == pytest.approx(float(second.double().mean()))


def test_a_difference_that_never_shows_still_has_an_interval() -> None:
    low, high = difference_interval(0, 0, 20)
    assert low == -high < 0
    assert difference_interval(1, 0, 1).high <= 1
