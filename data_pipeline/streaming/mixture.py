"""Several data sets mixed by weights, exactly and by position: no sampling, no state.

Global samples come in blocks of 4,096. Each block holds the same number of samples of each data set
(the weights, rounded to 1/4096) in an order of its own, so that any rank finds the sample at any
position in O(1). With weights 3:1:

    block 0   A A B A ...    A's samples    0 .. 3071,  B's    0 .. 1023
    block 1   A B A A ...    A's samples 3072 .. 6143,  B's 1024 .. 2047
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.randomness import orders

BLOCK = 4096


class Slots(NamedTuple):
    """For N consecutive global samples: which data set each comes from, (N,), and its index in that
    data set's own sequence, (N,)."""

    dataset: NDArray[np.int64]
    sample_index: NDArray[np.int64]


class Mixture:
    """A mixture of data sets with these weights, all positive. Raises ConfigError for a weight that
    rounds to nothing."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        share = np.asarray(weights, float) / sum(weights)
        exact = share * BLOCK
        self.counts = np.floor(exact).astype(np.int64)
        for i in np.argsort(self.counts - exact, kind="stable")[: BLOCK - int(self.counts.sum())]:
            self.counts[i] += 1  # largest remainder
        if (self.counts == 0).any():
            raise ConfigError(
                f"a weight of {min(weights)} beside {max(weights)} is under 1/{BLOCK}: leave the "
                "set out"
            )
        self._seed = seed
        self._which = np.repeat(np.arange(len(self.counts)), self.counts)

    def _block(self, block: int) -> Slots:
        dataset = self._which[orders(self._seed, "mixture", block, 1, BLOCK)[0]]
        index = np.empty(BLOCK, np.int64)
        for d, count in enumerate(self.counts):
            index[dataset == d] = block * count + np.arange(count)
        return Slots(dataset, index)

    def locate(self, start: int, count: int) -> Slots:
        """Return where the global samples start .. start+count-1 come from."""
        first, last = start // BLOCK, (start + count - 1) // BLOCK
        blocks = [self._block(b) for b in range(first, last + 1)]
        at = slice(start - first * BLOCK, start - first * BLOCK + count)
        return Slots(
            np.concatenate([b.dataset for b in blocks])[at],
            np.concatenate([b.sample_index for b in blocks])[at],
        )
