"""Batches of images and what belongs to them, read by threads in an order that is a function of the
step.

What a sample is stands in a `SampleReader`: a view and its class, an image and its label map, an
image and its instances. The loader knows the order, the threads, what is read ahead, and what takes
the place of a sample that cannot be read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.images.images import BadImage
from data_pipeline.streaming.epochs import EpochSchedule, epoch_schedule
from data_pipeline.streaming.order import SampleOrder
from model.errors import DataError

log = logging.getLogger(__name__)
# Batches that are read ahead: so many steps, as far as they take no more than these bytes. The next
# step's are always read.
_STEPS_AHEAD = 4
_AHEAD_BYTES = 256 * 2**20
# As many are begun at once. The first batches of a run would else wait for those of later steps.
_BEGUN_TOGETHER = 2

B = TypeVar("B")
Buffer = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def plain_buffer(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Make the memory of a batch; the trainer gives pinned memory instead."""
    return np.empty(shape, np.uint8)


class Draw(NamedTuple):
    """What the augmentation of a sample may depend on, beside the seed. sample: the global sample
    index, which a sample that takes another one's place shares with it."""

    epoch: int
    sample: int


class SampleReader(Protocol[B]):
    """Reads samples, each into its place of a batch. Threads share it."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def empty(self, count: int, start: int) -> B:
        """Make a batch without values. start: the global sample index of its first sample."""

    def batch_bytes(self, count: int) -> int:
        """Return about how much memory a batch takes."""

    def read(self, row: int, draw: Draw, batch: B, place: int) -> None:
        """Put a sample at a place of the batch. Raises BadImage if it cannot be read."""


class _Reading(NamedTuple, Generic[B]):
    """A batch that threads fill."""

    batch: B
    samples: list[Future[None]]
    size: int

    def drop(self) -> None:
        for sample in self.samples:
            sample.cancel()


class SampleLoader(Generic[B]):
    """Random access to batches of samples, in the order of (seed, epoch, position).

    Threads read some batches ahead. Decoding and resizing release Python's lock, so that threads
    share the cores. An unreadable sample is reported, and the next one of the listing takes its
    place: which one that is depends on the position and the data alone.

    bad_limit: share of the samples that may be unreadable, at least one; more raise DataError.
    """

    def __init__(
        self,
        reader: SampleReader[B],
        *,
        global_batch: int,
        seed: int,
        threads: int = 2,
        bad_limit: float = 0.01,
    ) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._ahead: dict[tuple[int, int, int], _Reading[B]] = {}  # by step, offset and count
        self.bad: dict[int, str] = {}  # row of a sample -> reason; rows may share a file
        # One at least stays, or the search for a substitute would go round.
        self._bad_allowed = min(max(1, int(bad_limit * len(reader))), len(reader) - 1)
        self.schedule: EpochSchedule = epoch_schedule(len(reader), global_batch)
        self.order = SampleOrder([len(reader)], seed)

    def _read(self, row: int, draw: Draw, batch: B, place: int) -> None:
        """Put the sample at `row`, or the next one that can be read, at a place of the batch."""
        while True:
            row %= len(self._reader)
            try:
                return self._reader.read(row, draw, batch, place)
            except BadImage as error:
                if row not in self.bad:
                    log.warning("%s; the next image takes its place", error)
                self.bad[row] = str(error)
                if len(self.bad) > self._bad_allowed:
                    raise DataError(
                        f"more than {self._bad_allowed} images cannot be read, the last: {error}"
                    ) from error
            row += 1

    def _start(self, step: int, offset: int, count: int) -> _Reading[B]:
        epoch, position = self.schedule.locate(step)
        rows = self.order.locate(epoch, position + offset, count).row
        start = step * self.schedule.global_batch + offset
        batch = self._reader.empty(count, start)
        samples = [
            self._pool.submit(self._read, int(row), Draw(epoch, start + place), batch, place)
            for place, row in enumerate(rows)
        ]
        return _Reading(batch, samples, self._reader.batch_bytes(count))

    def _read_ahead(self, step: int, offset: int, count: int) -> None:
        """Begin to read the same slice of the next steps, and drop it of steps that were passed
        over."""
        wanted = [(step + number, offset, count) for number in range(1, _STEPS_AHEAD + 1)]
        for key in [key for key in self._ahead if key[1:] == (offset, count)]:
            if key not in wanted:
                self._ahead.pop(key).drop()
        size = self._reader.batch_bytes(count)
        held = sum(reading.size for reading in self._ahead.values())
        for key in [key for key in wanted if key not in self._ahead][:_BEGUN_TOGETHER]:
            if key == wanted[0] or held + size <= _AHEAD_BYTES:
                self._ahead[key] = self._start(*key)
                held += size

    def close(self) -> None:
        """Drop what is being read, without waiting."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int, offset: int, count: int) -> B:
        """Return the samples offset .. offset+count-1 of a step's global batch, and start those of
        the next steps. Raises DataError if too many samples are unreadable."""
        reading = self._ahead.pop((step, offset, count), None) or self._start(step, offset, count)
        self._read_ahead(step, offset, count)
        for sample in reading.samples:
            sample.result()
        return reading.batch
