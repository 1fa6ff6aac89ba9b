"""Batches of augmented images, for tokenizer training and fine-tuning. As with tokens, their order
is a function of the step."""

from __future__ import annotations

import logging
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
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


class ImageBatch(NamedTuple):
    """A slice of a global batch. pixels: uint8 (B, H, W, 3). labels: int64 (B,). start: the global
    sample index of the first image."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    start: int


class ImageLoader:
    """Random access to batches of seeded views; each epoch sees a new view of every image.

    Threads read the images and keep them in memory, shrunk as far as the smallest crop allows. An
    unreadable image is reported, and the next one takes its place. bad_limit: share of the images
    that may be unreadable, at least one; more raise DataError.
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
    ) -> None:
        self.recipe = recipe
        self._side = (
            int(np.ceil(recipe.size / np.sqrt(recipe.scale[0])))
            if recipe.kind == "random_crop"
            else recipe.size
        )
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads)
        self._ahead: dict[tuple[int, int, int], list[Future[tuple[NDArray[np.uint8], int]]]] = {}
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
            # Entries are about equal in size, so counting them bounds the memory.
            if (
                len(self._cache) + 1
            ) * 3 * image.width * image.height > _CACHE_BYTES and self._cache:
                self._cache.popitem(last=False)
            self._cache[entry.id] = image
        return image

    def _view(self, row: int, epoch: int) -> tuple[NDArray[np.uint8], int]:
        """Return a view of the image at `row`, or of the next one that can be read, and its
        label."""
        while True:
            entry = self.images[row % len(self.images)]
            try:
                return make_view(self._image(entry), entry.id, epoch, self.recipe), entry.label
            except BadImage as error:
                if entry.id not in self.bad:
                    log.warning("%s; the next image takes its place", error)
                self.bad[entry.id] = str(error)
                if len(self.bad) > self._bad_allowed:
                    raise DataError(
                        f"more than {self._bad_allowed} images cannot be read, the last: {error}"
                    ) from error
            row += 1

    def _start(
        self, step: int, offset: int, count: int
    ) -> list[Future[tuple[NDArray[np.uint8], int]]]:
        epoch, position = self.schedule.locate(step)
        rows = self.order.locate(epoch, position + offset, count).row
        return [self._pool.submit(self._view, int(row), epoch) for row in rows]

    def close(self) -> None:
        """Drop what is being read, without waiting."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        """Return the samples offset .. offset+count-1 of a step's global batch, and start those of
        the next step. Raises DataError if too many images are unreadable."""
        futures = self._ahead.pop((step, offset, count), None) or self._start(step, offset, count)
        self._ahead[step + 1, offset, count] = self._start(step + 1, offset, count)
        pixels, labels = zip(*(f.result() for f in futures), strict=True)
        start = step * self.schedule.global_batch + offset
        return ImageBatch(np.stack(pixels), np.array(labels, np.int64), start)
