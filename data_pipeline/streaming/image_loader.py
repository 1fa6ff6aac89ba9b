"""Batches of augmented images, for tokenizer training and fine-tuning. As with tokens, their order
is a function of the step."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.images.images import ImageEntry, ImageSource, read_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.streaming.sample_loader import Buffer, Draw, SampleLoader, plain_buffer

_CACHE_BYTES = 512 * 2**20


class ImageBatch(NamedTuple):
    """A slice of a global batch. pixels: uint8 (B, H, W, 3). labels: int64 (B,). start: the global
    sample index of the first image."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    start: int


class ImageLoader(SampleLoader[ImageBatch]):
    """Random access to batches of seeded views; each epoch sees a new view of every image.

    The images stay in memory, shrunk as far as the smallest crop allows. What else it does, and
    `bad_limit`: see `SampleLoader`. buffer: makes the memory of a batch of a given shape.
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
        buffer: Buffer = plain_buffer,
    ) -> None:
        super().__init__(
            _ViewReader(source, recipe, buffer),
            global_batch=global_batch,
            seed=seed,
            threads=threads,
            bad_limit=bad_limit,
        )


class _ViewReader:
    """Reads views and classes of a source's images."""

    def __init__(self, source: ImageSource, recipe: ViewRecipe, buffer: Buffer) -> None:
        self._recipe, self._buffer = recipe, buffer
        self._side = (
            int(np.ceil(recipe.size / np.sqrt(recipe.scale[0])))
            if recipe.kind == "random_crop"
            else recipe.size
        )
        self._store, self._images = source.store, source.images
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._cache_lock = Lock()

    def __len__(self) -> int:
        return len(self._images)

    def empty(self, count: int, start: int) -> ImageBatch:
        size = self._recipe.size
        return ImageBatch(
            self._buffer((count, size, size, 3)), labels=np.empty(count, np.int64), start=start
        )

    def batch_bytes(self, count: int) -> int:
        return 3 * count * self._recipe.size**2

    def read(self, row: int, draw: Draw, batch: ImageBatch, place: int) -> None:
        entry = self._images[row]
        batch.pixels[place] = make_view(self._image(entry), entry.id, draw.epoch, self._recipe)
        batch.labels[place] = entry.label

    def _image(self, entry: ImageEntry) -> Image.Image:
        image = self._cache.get(entry.id)
        if image is None:
            image = read_image(self._store, entry)
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
