"""Sample order: a pure function (seed, epoch, position) -> (shard, row), the same on any number of ranks.

An epoch permutes the shards, and then the rows inside each window of `window` consecutive shards: so shuffling is
global in shards and local in rows, and only a window's shards need to be at hand. The whole state is a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.randomness import orders


class Rows(NamedTuple):
    """Where samples lie: parallel int64 arrays."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]


class SampleOrder:
    """The order of a data set whose shard k holds rows_per_shard[k] samples."""

    def __init__(self, rows_per_shard: Sequence[int], seed: int, window: int = 16) -> None:
        assert window > 0 and all(rows > 0 for rows in rows_per_shard)
        self.rows_per_shard = np.asarray(rows_per_shard, dtype=np.int64)
        self.samples = int(self.rows_per_shard.sum())
        self.seed = seed
        self.window = window
        # Bound methods in lru_cache would keep the object alive; these caches die with it.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._window_rows = lru_cache(maxsize=3)(self._make_window)

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(shards in the epoch's order, first position of each window and the end)."""
        shards = orders(self.seed, "shard-order", epoch, 1, len(self.rows_per_shard))[0]
        starts = np.arange(0, len(shards), self.window)
        counts = np.add.reduceat(self.rows_per_shard[shards], starts)
        return shards, np.concatenate([[0], np.cumsum(counts)])

    def _make_window(self, epoch: int, index: int) -> Rows:
        shards = self._epoch(epoch)[0][index * self.window : (index + 1) * self.window]
        counts = self.rows_per_shard[shards]
        shard = np.repeat(shards, counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        shuffled = orders(self.seed, f"row-order/{epoch}", index, 1, len(shard))[0] if len(shard) else slice(0)
        return Rows(shard[shuffled], row[shuffled])

    def locate(self, epoch: int, start: int, count: int) -> Rows:
        """Samples at positions start .. start+count-1 of an epoch. 0 <= start, start + count <= samples."""
        assert start >= 0 and start + count <= self.samples, (start, count, self.samples)
        bounds = self._epoch(epoch)[1]
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        parts = []
        while count > 0:
            rows, offset = self._window_rows(epoch, first), start - int(bounds[first])
            taken = min(count, len(rows.row) - offset)
            parts.append(Rows(rows.shard[offset : offset + taken], rows.row[offset : offset + taken]))
            start, count, first = start + taken, count - taken, first + 1
        if len(parts) == 1:
            return parts[0]
        return Rows(np.concatenate([p.shard for p in parts]), np.concatenate([p.row for p in parts]))
