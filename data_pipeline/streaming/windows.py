"""A stream of one data set's samples by index: windows of mapped shards, the next one opened ahead
by a thread.

Every sample of a window has a memory address, so a batch is one gather: no loop over samples or
shards, and no copy but the one into the batch. The shards of a window are mapped wherever the
kernel put them; one array spans them all, from the lowest mapped byte to the highest:

    address   low                   + a                      + b
              |                     |                        |
    memory    [ shard 5 .......... ]   (not ours)  [ shard 2 ][ shard 9 ....... ]
                        |-- stride --|
    offset of a sample            = (base of its shard - low) + row * stride
    offset of its view's tokens   = that + tokens_offset + view * 2 L
    offset of its label           = that + label_offset

The gather reads at offsets inside of rows only, so what lies between the shards is never touched.
Rows of a quarantined shard read a blank row instead, and are marked as not sound.
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
    """Tokens of one view of N samples, and their labels.

    ids: uint16 (N, L). labels: int64 (N,), or (0,) if they are not read. sound: bool (N,), False
    for rows of quarantined shards and for padding; None if all are sound.
    """

    ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    sound: NDArray[np.bool_] | None


class Window:
    """The samples of one window of an epoch, in order, by their addresses.

    readers: of the shards `rows.shards`; None for a quarantined shard.
    """

    def __init__(
        self, rows: WindowRows, readers: list[ShardReader | None], layout: Layout, epoch: int
    ) -> None:
        blank = np.zeros(layout.stride, np.uint8)  # what rows of quarantined shards read: ids 0
        blank[layout.label_offset :] = ord("0")
        self._memory = [blank if r is None else r.raw for r in readers]  # stays mapped as we live
        bases = np.array([m.ctypes.data for m in self._memory], np.int64)
        ends = bases + np.array([len(m) for m in self._memory])
        low = int(bases.min())
        span = int(ends.max()) - low
        everything: Any = (ctypes.c_uint8 * span).from_address(low)
        view_bytes = 2 * layout.tokens
        # Item i of these arrays is the view, or the label, that begins at byte i.
        self._views = np.ndarray(
            (span - view_bytes + 1,), f"V{view_bytes}", everything, strides=(1,)
        )
        self._labels = np.ndarray(
            (span - LABEL_DIGITS + 1,), f"V{LABEL_DIGITS}", everything, strides=(1,)
        )
        self._layout = layout

        view = (rows.row + epoch) % layout.views
        row_offset = rows.row * layout.stride
        tokens_offset = layout.tokens_offset + view * view_bytes
        lost = np.array([r is None for r in readers])
        self.sound = None
        if lost.any():  # a blank has one row and one view, whose bytes are all alike
            self.sound = ~lost[rows.shard_index]
            row_offset *= self.sound
            tokens_offset *= self.sound
        row_at = (bases - low)[rows.shard_index] + row_offset
        self._tokens_at = row_at + tokens_offset
        self._label_at = row_at + layout.label_offset

    def read(self, start: int, count: int, labelled: bool) -> Samples:
        """Return the samples at positions start .. start+count-1 of the window; the arrays are
        copies."""
        stop = start + count
        tokens = self._views[self._tokens_at[start:stop]]
        ids = tokens.view("<u2").reshape(count, self._layout.tokens)
        labels = _NONE
        if labelled:
            digits = self._labels[self._label_at[start:stop]].view(np.uint8).reshape(count, -1)
            labels = (digits - np.uint8(ord("0"))).astype(np.int64) @ _POWERS
        return Samples(ids, labels, None if self.sound is None else self.sound[start:stop])


class SampleStream:
    """The endless sequence of samples in one order. Sample i = epoch * per_epoch + position; epoch
    e reads view (row + e) mod V of each row, so that the views take turns.

    per_epoch: positions of an epoch. If it is less than order.samples, the rest is dropped; if it
    is more, unsound samples pad the epoch. on_bad: whether a damaged shard stops the run or is
    quarantined. labelled: whether labels are read. incident: told of every quarantined shard.
    """

    def __init__(
        self,
        shards: Shards,
        order: SampleOrder,
        *,
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

    def read(self, index: int, count: int) -> Samples:
        """Return the samples index .. index+count-1. Raises ShardDamaged (with on_bad "stop") and
        StorageError."""
        pieces = []
        while count:
            epoch, position = divmod(index, self.per_epoch)
            if position >= self._order.samples:  # padding
                taken = min(count, self.per_epoch - position)
                first = self._window(epoch, 0).read(0, 1, self._labelled)
                pieces.append(
                    Samples(
                        first.ids.repeat(taken, 0),
                        first.labels.repeat(taken),
                        np.zeros(taken, np.bool_),
                    )
                )
            else:
                bounds = self._order.bounds(epoch)
                number = int(np.searchsorted(bounds, position, side="right")) - 1
                start = position - int(bounds[number])
                taken = min(count, int(min(bounds[number + 1], self.per_epoch)) - position)
                pieces.append(self._window(epoch, number).read(start, taken, self._labelled))
            index, count = index + taken, count - taken
        return pieces[0] if len(pieces) == 1 else joined(pieces)

    def locate(self, index: int) -> tuple[int, int, int, int] | None:
        """Return (epoch, shard number, row, view) of a sample; None for padding."""
        epoch, position = divmod(index, self.per_epoch)
        if position >= self._order.samples:
            return None
        where = self._order.locate(epoch, position, 1)
        row = int(where.row[0])
        return epoch, int(where.shard[0]), row, (row + epoch) % self._shards.manifest.views.views

    def _window(self, epoch: int, number: int) -> Window:
        key = (epoch, number)
        if key != self._current:  # only this window and the next one stay mapped
            wanted = (key, self._following(epoch, number))
            self._windows = {
                k: self._windows.get(k) or self._ahead.submit(self._open, *k) for k in wanted
            }
            self._current = key
        try:
            return self._windows[key].result()
        except BaseException:
            del self._windows[key]  # the next call tries again
            self._current = None
            raise

    def _following(self, epoch: int, number: int) -> tuple[int, int]:
        bounds = self._order.bounds(epoch)
        last = number + 2 >= len(bounds) or bounds[number + 1] >= self.per_epoch
        return (epoch + 1, 0) if last else (epoch, number + 1)

    def _open(self, epoch: int, number: int) -> Window:
        # The shards first: the order of their rows takes memory, and the files may not be there.
        numbers = self._order.window_shards(epoch, number).tolist()
        readers = list(self._openers.map(self._open_shard, numbers))
        rows = self._order.window_rows(epoch, number)
        return Window(rows, readers, self._shards.manifest.layout, epoch)

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
        """End the threads and unmap the windows."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._openers.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()


def joined(pieces: list[Samples]) -> Samples:
    """Concatenate samples."""
    sound = None
    if any(p.sound is not None for p in pieces):
        sound = np.concatenate(
            [np.ones(len(p.ids), np.bool_) if p.sound is None else p.sound for p in pieces]
        )
    return Samples(
        np.concatenate([p.ids for p in pieces]), np.concatenate([p.labels for p in pieces]), sound
    )
