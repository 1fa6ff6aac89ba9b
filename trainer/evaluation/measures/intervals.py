"""How far a share of images can be trusted: 95 % intervals. Imports no torch.

All that is asked of an image is whether it came out right. Two things that were measured on the
same images are compared image by image: what is easy or hard for both then cancels, so that the
interval of their difference is much narrower than the two intervals make believe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ENDS = ("_low", "_high")  # what the names of an interval's ends add to that of the metric
OVER = "_over_"  # between the name of a metric and what it is ahead of
MAIN = "trained"  # what is measured; all else is what it is compared with
_Z = 1.959964  # of 95 %


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def share_interval(share: float, count: float) -> Interval:
    """Return Wilson's interval of a share of `count` images (JASA 22, 1927). It stays within [0,
    1], and has a length where all images or none are right."""
    square = _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def difference_interval(first_alone: int, second_alone: int, count: int) -> Interval:
    """Return the interval of the difference of two shares of the same `count` images (Agresti and
    Min, Statistics in Medicine 24, 2005: Wald's, with half an image added to each of four cells).

    first_alone, second_alone: how many images only the first, or only the second, has right.
    """
    total, first, second = count + 2, first_alone + 0.5, second_alone + 0.5
    difference = (first - second) / total
    half = _Z * math.sqrt(first + second - total * difference**2) / total
    return Interval(max(-1.0, difference - half), min(1.0, difference + half))


def shares(right: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Return metrics with their intervals.

    right: which images came out right, (N,) bool, by what was measured and by metric. The images
    and their order are the same everywhere; N may not be 0.

    NAME is the share of `MAIN`, and KIND_NAME that of another kind. NAME_over_KIND is how far
    `MAIN` is ahead of it. Each has its ends, NAME_low and NAME_high.
    """
    found: dict[str, float] = {}

    def add(name: str, value: float, interval: Interval) -> None:
        found[name] = value
        found.update((name + end, edge) for end, edge in zip(ENDS, interval, strict=True))

    for kind, metrics in right.items():
        for name, images in metrics.items():
            share, count = int(images.sum()) / len(images), len(images)
            prefix = "" if kind == MAIN else f"{kind}_"
            add(prefix + name, share, share_interval(share, count))
            if kind != MAIN and name in right[MAIN]:
                ours = right[MAIN][name]
                alone = int((ours & ~images).sum()), int((images & ~ours).sum())
                add(
                    f"{name}{OVER}{kind}",
                    (alone[0] - alone[1]) / count,
                    difference_interval(*alone, count),
                )
    return found
