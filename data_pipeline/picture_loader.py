"""Batches of augmented pictures for tokenizer training, in the same kind of order as tokens: a function of the step."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.loader import EpochSchedule, epoch_schedule
from data_pipeline.order import SampleOrder
from data_pipeline.pictures import Picture, PictureSource, read_picture
from data_pipeline.views import ViewRecipe, make_view
from model.errors import DataError

_CACHE_BYTES = 512 * 2**20


class PictureBatch(NamedTuple):
    """pixels: uint8 (B, H, W, 3). start: global sample index of the first."""

    pixels: NDArray[np.uint8]
    start: int


class PictureLoader:
    """Random access to batches of seeded views; each epoch sees a new view of every picture.

    Pictures are read by threads and kept in memory, shrunk as far as the smallest crop allows. Unreadable pictures
    are found at the start and left out; more than `bad_limit` of them raise DataError.
    """

    def __init__(
        self, source: PictureSource, recipe: ViewRecipe, *, global_batch: int, seed: int, threads: int = 2,
        bad_limit: float = 0.01,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self._side = (
            int(np.ceil(recipe.size / np.sqrt(recipe.scale[0]))) if recipe.kind == "random_crop" else recipe.size
        )
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads)
        self._ahead: dict[tuple[int, int, int], list[Future[NDArray[np.uint8]]]] = {}
        self.pictures, self.bad = self._check(source.pictures, bad_limit)
        self.schedule: EpochSchedule = epoch_schedule(len(self.pictures), global_batch)
        self.order = SampleOrder([len(self.pictures)], seed)

    def _check(self, pictures: tuple[Picture, ...], limit: float) -> tuple[list[Picture], list[str]]:
        def problem(picture: Picture) -> str | None:
            try:
                self._picture(picture)
            except DataError as error:
                return str(error)
            return None

        problems = list(self._pool.map(problem, pictures))
        bad = [p for p in problems if p]
        if len(bad) > limit * len(pictures):
            raise DataError(
                f"{len(bad)} of {len(pictures)} pictures cannot be read, more than the limit {limit:.1%}: {bad[0]}"
            )
        return [p for p, why in zip(pictures, problems, strict=True) if why is None], bad

    def _picture(self, picture: Picture) -> Image.Image:
        image = self._cache.get(picture.id)
        if image is None:
            image = read_picture(picture.path)
            factor = min(image.size) // self._side
            if factor > 1:
                image = image.reduce(factor)
            # Entries are about equal in size, so counting them bounds the memory.
            if (len(self._cache) + 1) * 3 * image.width * image.height > _CACHE_BYTES and self._cache:
                self._cache.popitem(last=False)
            self._cache[picture.id] = image
        return image

    def _view(self, picture: Picture, epoch: int) -> NDArray[np.uint8]:
        return make_view(self._picture(picture), picture.id, epoch, self.recipe)

    def _start(self, step: int, offset: int, count: int) -> list[Future[NDArray[np.uint8]]]:
        epoch, position = self.schedule.locate(step)
        rows = self.order.locate(epoch, position + offset, count).row
        return [self._pool.submit(self._view, self.pictures[row], epoch) for row in rows]

    def batch(self, step: int, offset: int, count: int) -> PictureBatch:
        """Samples offset .. offset+count-1 of the global batch of a step; the next step's are started as well."""
        futures = self._ahead.pop((step, offset, count), None) or self._start(step, offset, count)
        self._ahead[step + 1, offset, count] = self._start(step + 1, offset, count)
        return PictureBatch(np.stack([f.result() for f in futures]), step * self.schedule.global_batch + offset)
