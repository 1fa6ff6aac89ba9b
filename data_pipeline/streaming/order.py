"""Sample order: a pure function (seed, epoch, position) -> (shard, row), the same on any number of
ranks.

An epoch permutes the shards, and then the rows inside each window of `window` consecutive shards:

    shards of the epoch   7  2  9 | 0  5  3 | 8  1  6 | 4        window = 3
    windows                  0    |    1    |    2    | 3
    positions             0 ...   | a ...   | b ...   | c ... n  bounds = [0, a, b, c, n]
    rows in window 1      all rows of shards 0, 5 and 3, shuffled together

So shuffling is global in shards and local in rows, and only one window's shards need to be at hand.
The whole state is a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.randomness import orders


class Rows(NamedTuple):
    """Where samples lie: shard numbers and rows in them, parallel arrays (N,)."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]


class WindowRows(NamedTuple):
    """All N samples of a window, in order.

    shards: the numbers of its shards, (S,). shard_index: for each sample an index into `shards`,
    (N,). row: its row in that shard, (N,).
    """

    shards: NDArray[np.int64]
    shard_index: NDArray[np.int64]
    row: NDArray[np.int64]


class SampleOrder:
    """The order of the samples of some shards of a data set, whose shard k holds rows_per_shard[k]
    samples.

    window: shards whose rows are shuffled together. numbers: the shards, all if None. name: keeps
    the shuffles of several orders of one seed apart.
    """

    def __init__(
        self,
        rows_per_shard: Sequence[int] | NDArray[np.int64],
        seed: int,
        *,
        window: int = 16,
        numbers: NDArray[np.int64] | None = None,
        name: str = "",
    ) -> None:
        counts = np.asarray(rows_per_shard, dtype=np.int64)
        self._numbers = np.arange(len(counts)) if numbers is None else numbers
        self._rows = counts[self._numbers]
        assert window > 0 and len(self._rows) and bool((self._rows > 0).all())
        self.samples = int(self._rows.sum())
        self.seed, self.window, self._name = seed, min(window, len(self._rows)), name
        # Bound methods in lru_cache would keep the object alive; these caches die with it.
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self.window_rows = lru_cache(maxsize=3)(self._make_window)

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (indices into the shards in the epoch's order, the windows' bounds)."""
        shards = orders(self.seed, f"shard-order{self._name}", epoch, 1, len(self._rows))[0]
        starts = np.arange(0, len(shards), self.window)
        counts = np.add.reduceat(self._rows[shards], starts)
        return shards, np.concatenate([[0], np.cumsum(counts)])

    def window_shards(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Return the numbers of the shards of an epoch's window, without shuffling their rows."""
        return self._numbers[self._members(epoch, number)]

    def _members(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Return the window's shards as indices into `self._numbers`."""
        return self._epoch(epoch)[0][number * self.window : (number + 1) * self.window]

    def _make_window(self, epoch: int, number: int) -> WindowRows:
        members = self._members(epoch, number)
        counts = self._rows[members]
        # The window's rows are numbered shard by shard; the shuffle permutes these numbers.
        purpose = f"row-order{self._name}/{epoch}"
        shuffled = orders(self.seed, purpose, number, 1, int(counts.sum()))[0]
        shard_index = np.repeat(np.arange(len(members)), counts)[shuffled]
        first = np.cumsum(counts) - counts  # the number of each shard's first row
        return WindowRows(self._numbers[members], shard_index, shuffled - first[shard_index])

    def bounds(self, epoch: int) -> NDArray[np.int64]:
        """Return the first position of each of the epoch's windows, and the end: (windows + 1,)."""
        return self._epoch(epoch)[1]

    def locate(self, epoch: int, start: int, count: int) -> Rows:
        """Return where the samples at positions start .. start+count-1 of an epoch lie.

        They must lie inside the epoch: 0 <= start, start + count <= samples.
        """
        assert start >= 0 and start + count <= self.samples, (start, count, self.samples)
        bounds = self.bounds(epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        parts = []
        while count > 0:
            rows, offset = self.window_rows(epoch, first), start - int(bounds[first])
            taken = min(count, len(rows.row) - offset)
            at = slice(offset, offset + taken)
            parts.append(Rows(rows.shards[rows.shard_index[at]], rows.row[at]))
            start, count, first = start + taken, count - taken, first + 1
        if len(parts) == 1:
            return parts[0]
        return Rows(
            np.concatenate([p.shard for p in parts]), np.concatenate([p.row for p in parts])
        )


def stripes_of(shards: int, stripes: int, seed: int) -> list[NDArray[np.int64]]:
    """Split the shards into equal stripes, so that a node downloads only those that its ranks read.

    The split is fixed by the seed. If it is uneven, the first stripes get a shard more. Raises
    ConfigError for more stripes than shards.
    """
    if stripes > shards:
        raise ConfigError(
            f"data.stripes = {stripes}, but there are {shards} shards; use at most {shards}"
        )
    dealt = orders(seed, "stripes", 0, 1, shards)[0]
    return [np.sort(dealt[i::stripes]) for i in range(stripes)]
