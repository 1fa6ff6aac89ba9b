"""A stream of one data set's samples by position: windows of mapped shards, the next one opened
ahead by a thread.

Every sample of a window has a memory address, so a batch is one gather: no loop over samples or
shards, no copy but the one into the batch.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import LABEL_DIGITS, Layout, ShardReader
from data_pipeline.streaming.fetch import Incident, ShardDamaged
from data_pipeline.streaming.order import SampleOrder, WindowRows
from data_pipeline.streaming.shard_cache import Shards

OnBadShard = Literal["stop", "quarantine"]
_OPENERS = 8
_NONE = np.empty(0, np.int64)
_POWERS = 10 ** np.arange(LABEL_DIGITS - 1, -1, -1, dtype=np.int64)


class Samples(NamedTuple):
    """ids: uint16 (N, L). labels: int64 (N,), or (0,) where they are not read.

    sound: bool (N,), False for rows of quarantined shards and for padding; None where all are."""

    ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    sound: NDArray[np.bool_] | None


class Window:
    """The samples of a window in order, by address. readers: of `rows.shards`; None for a
    quarantined one."""

    def __init__(
        self, rows: WindowRows, readers: list[ShardReader | None], layout: Layout, epoch: int
    ) -> None:
        blank = np.zeros(layout.stride, np.uint8)  # what quarantined rows read: ids 0
        blank[layout.label_offset :] = ord("0")
        memory = [blank if r is None else r.raw for r in readers]
        self._memory = memory  # mapped as long as we are
        bases = np.array([m.ctypes.data for m in memory], np.int64)
        low = int(bases.min())
        span = int(max(base + len(m) for base, m in zip(bases, memory, strict=True))) - low
        # One array over all the addresses between the shards; only those of rows are ever touched.
        everything: Any = (ctypes.c_uint8 * span).from_address(low)
        size = 2 * layout.tokens
        self._views = np.ndarray((span - size + 1,), f"V{size}", everything, strides=(1,))
        self._labels = np.ndarray(
            (span - LABEL_DIGITS + 1,), f"V{LABEL_DIGITS}", everything, strides=(1,)
        )
        self._layout = layout

        lost = np.array([r is None for r in readers])
        self.sound = ~lost[rows.place] if lost.any() else None
        inside = rows.row * layout.stride
        if self.sound is not None:
            inside *= self.sound
        self._at = (bases - low)[rows.place] + inside
        view = (rows.row + epoch) % layout.views
        self._at_view = self._at + (layout.tokens_offset + view * size) * (
            1 if self.sound is None else self.sound
        )
        self._at_label = self._at + layout.label_offset

    def read(self, start: int, count: int, labelled: bool) -> Samples:
        stop = start + count
        ids = self._views[self._at_view[start:stop]].view("<u2").reshape(count, self._layout.tokens)
        labels = _NONE
        if labelled:
            digits = self._labels[self._at_label[start:stop]].view(np.uint8).reshape(count, -1)
            labels = (digits - np.uint8(ord("0"))).astype(np.int64) @ _POWERS
        return Samples(ids, labels, None if self.sound is None else self.sound[start:stop])


class SampleStream:
    """Samples of one order by their place j = epoch * per_epoch + position; an epoch uses one view
    of each, cycling.

    per_epoch: positions of an epoch, at most order.samples (the rest is dropped) or more (padded
    with unsound samples).
    """

    def __init__(
        self,
        shards: Shards,
        order: SampleOrder,
        per_epoch: int,
        on_bad: OnBadShard,
        labelled: bool,
        incident: Incident,
    ) -> None:
        self._shards, self._order, self.per_epoch = shards, order, per_epoch
        self._on_bad, self._labelled, self._incident = on_bad, labelled, incident
        self._ahead = ThreadPoolExecutor(1, "window")
        self._openers = ThreadPoolExecutor(_OPENERS, "shards")
        self._windows: dict[tuple[int, int], Future[Window]] = {}
        self._current: tuple[int, int] | None = None

    def read(self, place: int, count: int) -> Samples:
        """Samples at places place .. place+count-1. Raises ShardDamaged (on_bad "stop") and
        StorageError."""
        parts = []
        while count:
            epoch, position = divmod(place, self.per_epoch)
            if position >= self._order.samples:  # padding
                taken = min(count, self.per_epoch - position)
                first = self._window(epoch, 0).read(0, 1, self._labelled)
                parts.append(
                    Samples(
                        first.ids.repeat(taken, 0),
                        first.labels.repeat(taken),
                        np.zeros(taken, np.bool_),
                    )
                )
            else:
                bounds = self._order.bounds(epoch)
                index = int(np.searchsorted(bounds, position, side="right")) - 1
                start = position - int(bounds[index])
                taken = min(count, int(min(bounds[index + 1], self.per_epoch)) - position)
                parts.append(self._window(epoch, index).read(start, taken, self._labelled))
            place, count = place + taken, count - taken
        return parts[0] if len(parts) == 1 else joined(parts)

    def locate(self, place: int) -> tuple[int, int, int, int] | None:
        """(epoch, shard, row, view) of a place; None for padding."""
        epoch, position = divmod(place, self.per_epoch)
        if position >= self._order.samples:
            return None
        where = self._order.locate(epoch, position, 1)
        row = int(where.row[0])
        return epoch, int(where.shard[0]), row, (row + epoch) % self._shards.manifest.views.views

    def _window(self, epoch: int, index: int) -> Window:
        key = (epoch, index)
        if key != self._current:  # only this window and the next one stay mapped
            wanted = (key, self._following(epoch, index))
            self._windows = {
                k: self._windows.get(k) or self._ahead.submit(self._open, *k) for k in wanted
            }
            self._current = key
        try:
            return self._windows[key].result()
        except BaseException:
            del self._windows[key]  # asked for again, it is tried again
            self._current = None
            raise

    def _following(self, epoch: int, index: int) -> tuple[int, int]:
        bounds = self._order.bounds(epoch)
        last = index + 2 >= len(bounds) or bounds[index + 1] >= self.per_epoch
        return (epoch + 1, 0) if last else (epoch, index + 1)

    def _open(self, epoch: int, index: int) -> Window:
        # The shards first: what a manifest says of their rows takes memory, and the files may not
        # be there.
        readers = list(
            self._openers.map(self._open_shard, self._order.window_shards(epoch, index).tolist())
        )
        return Window(
            self._order.window_rows(epoch, index), readers, self._shards.manifest.layout, epoch
        )

    def _open_shard(self, number: int) -> ShardReader | None:
        try:
            return self._shards.open(number)
        except ShardDamaged as error:
            if self._on_bad == "stop":
                raise
            entry = self._shards.manifest.shards[number]
            self._incident(
                {
                    "event": "shard quarantined",
                    "shard": entry.name,
                    "rows": entry.rows,
                    "error": str(error),
                }
            )
            return None

    def close(self) -> None:
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._openers.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()


def joined(parts: list[Samples]) -> Samples:
    sound = None
    if any(p.sound is not None for p in parts):
        sound = np.concatenate(
            [np.ones(len(p.ids), np.bool_) if p.sound is None else p.sound for p in parts]
        )
    return Samples(
        np.concatenate([p.ids for p in parts]), np.concatenate([p.labels for p in parts]), sound
    )
