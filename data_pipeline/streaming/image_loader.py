"""Batches of augmented images, for tokenizer training and fine-tuning. As with tokens, their order
is a function of the step."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.images.images import BadImage, ImageEntry, ImageSource, read_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.streaming.epochs import EpochSchedule, epoch_schedule
from data_pipeline.streaming.order import SampleOrder
from model.errors import DataError

log = logging.getLogger(__name__)
_CACHE_BYTES = 512 * 2**20
# Batches that are read ahead: so many steps, as far as they take no more than these bytes. The next
# step's are always read.
_STEPS_AHEAD = 4
_AHEAD_BYTES = 256 * 2**20
# As many are begun at once. The first batches of a run would else wait for those of later steps.
_BEGUN_TOGETHER = 2

Buffer = Callable[[tuple[int, ...]], NDArray[np.uint8]]


class ImageBatch(NamedTuple):
    """A slice of a global batch. pixels: uint8 (B, H, W, 3). labels: int64 (B,). start: the global
    sample index of the first image."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    start: int


class _Reading(NamedTuple):
    """A batch that threads read: each fills its image's place in `pixels` and `labels`."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    images: list[Future[None]]

    def drop(self) -> None:
        for image in self.images:
            image.cancel()


class ImageLoader:
    """Random access to batches of seeded views; each epoch sees a new view of every image.

    Threads read the images, some batches ahead, and keep them in memory, shrunk as far as the
    smallest crop allows. Decoding and resizing release Python's lock, so that threads share the
    cores. An unreadable image is reported, and the next one takes its place.

    bad_limit: share of the images that may be unreadable, at least one; more raise DataError.
    buffer: makes the memory of a batch of a given shape; the trainer gives pinned memory.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: ViewRecipe,
        *,
        global_batch: int,
        seed: int,
        threads: int = 2,
        bad_limit: float = 0.01,
        buffer: Buffer = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self.recipe = recipe
        self._side = (
            int(np.ceil(recipe.size / np.sqrt(recipe.scale[0])))
            if recipe.kind == "random_crop"
            else recipe.size
        )
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._cache_lock = Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._buffer = buffer
        self._ahead: dict[tuple[int, int, int], _Reading] = {}  # by step, offset and count
        self.store, self.images = source.store, source.images
        self.bad: dict[str, str] = {}  # image id -> reason
        self._bad_allowed = max(1, int(bad_limit * len(self.images)))
        self.schedule: EpochSchedule = epoch_schedule(len(self.images), global_batch)
        self.order = SampleOrder([len(self.images)], seed)

    def _image(self, entry: ImageEntry) -> Image.Image:
        image = self._cache.get(entry.id)
        if image is None:
            image = read_image(self.store, entry)
            factor = min(image.size) // self._side
            if factor > 1:
                image = image.reduce(factor)
            with self._cache_lock:
                # Entries are about equal in size, so counting them bounds the memory.
                size = 3 * image.width * image.height
                if self._cache and (len(self._cache) + 1) * size > _CACHE_BYTES:
                    self._cache.popitem(last=False)
                self._cache[entry.id] = image
        return image

    def _read(self, row: int, epoch: int, batch: _Reading, place: int) -> None:
        """Put a view of the image at `row`, or of the next one that can be read, and its label at a
        place of the batch."""
        while True:
            entry = self.images[row % len(self.images)]
            try:
                batch.pixels[place] = make_view(self._image(entry), entry.id, epoch, self.recipe)
                batch.labels[place] = entry.label
                return
            except BadImage as error:
                if entry.id not in self.bad:
                    log.warning("%s; the next image takes its place", error)
                self.bad[entry.id] = str(error)
                if len(self.bad) > self._bad_allowed:
                    raise DataError(
                        f"more than {self._bad_allowed} images cannot be read, the last: {error}"
                    ) from error
            row += 1

    def _start(self, step: int, offset: int, count: int) -> _Reading:
        epoch, position = self.schedule.locate(step)
        rows = self.order.locate(epoch, position + offset, count).row
        size = self.recipe.size
        batch = _Reading(self._buffer((count, size, size, 3)), np.empty(count, np.int64), [])
        for place, row in enumerate(rows):
            batch.images.append(self._pool.submit(self._read, int(row), epoch, batch, place))
        return batch

    def _read_ahead(self, step: int, offset: int, count: int) -> None:
        """Begin to read the same slice of the next steps, and drop it of steps that were passed
        over."""
        wanted = [(step + number, offset, count) for number in range(1, _STEPS_AHEAD + 1)]
        for key in [key for key in self._ahead if key[1:] == (offset, count)]:
            if key not in wanted:
                self._ahead.pop(key).drop()
        size = 3 * count * self.recipe.size**2
        held = sum(batch.pixels.nbytes for batch in self._ahead.values())
        for key in [key for key in wanted if key not in self._ahead][:_BEGUN_TOGETHER]:
            if key == wanted[0] or held + size <= _AHEAD_BYTES:
                self._ahead[key] = self._start(*key)
                held += size

    def close(self) -> None:
        """Drop what is being read, without waiting."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        """Return the samples offset .. offset+count-1 of a step's global batch, and start those of
        the next steps. Raises DataError if too many images are unreadable."""
        batch = self._ahead.pop((step, offset, count), None) or self._start(step, offset, count)
        self._read_ahead(step, offset, count)
        for image in batch.images:
            image.result()
        start = step * self.schedule.global_batch + offset
        return ImageBatch(batch.pixels, batch.labels, start)
