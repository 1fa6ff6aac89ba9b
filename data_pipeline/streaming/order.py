"""Sample order: a pure function (seed, epoch, position) -> (shard, row), the same on any number of
ranks.

An epoch permutes the shards, and then the rows inside each window of `window` consecutive shards:
so shuffling is global in shards and local in rows, and only a window's shards need to be at hand.
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
    """Where samples lie: parallel int64 arrays."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]


class WindowRows(NamedTuple):
    """All samples of a window, in order. shards: numbers of its shards; place: index into them;
    row: in the shard."""

    shards: NDArray[np.int64]
    place: NDArray[np.int64]
    row: NDArray[np.int64]


class SampleOrder:
    """The order of the shards `numbers` (all, when None) of a data set whose shard k holds
    rows_per_shard[k] samples.

    name: keeps the shuffles of several orders of one seed apart.
    """

    def __init__(
        self,
        rows_per_shard: Sequence[int] | NDArray[np.int64],
        seed: int,
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
        """(places of the shards in the epoch's order, first position of each window and the
        end)."""
        shards = orders(self.seed, f"shard-order{self._name}", epoch, 1, len(self._rows))[0]
        starts = np.arange(0, len(shards), self.window)
        counts = np.add.reduceat(self._rows[shards], starts)
        return shards, np.concatenate([[0], np.cumsum(counts)])

    def window_shards(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Numbers of the shards of a window, before anything is made of their rows."""
        return self._numbers[self._places(epoch, index)]

    def _places(self, epoch: int, index: int) -> NDArray[np.int64]:
        return self._epoch(epoch)[0][index * self.window : (index + 1) * self.window]

    def _make_window(self, epoch: int, index: int) -> WindowRows:
        shards = self._places(epoch, index)
        counts = self._rows[shards]
        shuffled = orders(self.seed, f"row-order{self._name}/{epoch}", index, 1, int(counts.sum()))[
            0
        ]
        place = np.repeat(np.arange(len(shards)), counts)[shuffled]
        return WindowRows(
            self._numbers[shards], place, shuffled - (np.cumsum(counts) - counts)[place]
        )

    def bounds(self, epoch: int) -> NDArray[np.int64]:
        """First position of each of the epoch's windows, and the end."""
        return self._epoch(epoch)[1]

    def locate(self, epoch: int, start: int, count: int) -> Rows:
        """Samples at positions start .. start+count-1 of an epoch. 0 <= start, start + count <=
        samples."""
        assert start >= 0 and start + count <= self.samples, (start, count, self.samples)
        bounds = self.bounds(epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        parts = []
        while count > 0:
            rows, offset = self.window_rows(epoch, first), start - int(bounds[first])
            taken = min(count, len(rows.row) - offset)
            at = slice(offset, offset + taken)
            parts.append(Rows(rows.shards[rows.place[at]], rows.row[at]))
            start, count, first = start + taken, count - taken, first + 1
        if len(parts) == 1:
            return parts[0]
        return Rows(
            np.concatenate([p.shard for p in parts]), np.concatenate([p.row for p in parts])
        )


def stripes_of(shards: int, stripes: int, seed: int) -> list[NDArray[np.int64]]:
    """A fixed split of the shards into equal parts, so that a node downloads only the stripes its
    ranks read. Shards that do not divide evenly are dealt to the first stripes. Raises ConfigError
    for more stripes than shards."""
    if stripes > shards:
        raise ConfigError(
            f"data.stripes = {stripes}, but there are {shards} shards; use at most {shards}"
        )
    dealt = orders(seed, "stripes", 0, 1, shards)[0]
    return [np.sort(dealt[i::stripes]) for i in range(stripes)]
