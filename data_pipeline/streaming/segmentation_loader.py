"""Batches of images and their label maps.

    source = open_ade20k("s3://bucket/ADEChallengeData2016", "training")
    loader = SegmentationLoader(source, SegmentationRecipe(), global_batch=16, seed=0)
    batch = loader.batch(step, offset, count)    # this rank's slice of a step's global batch

For evaluation, `source.read(row)` gives an image and its labels as they are stored, and
`resized_for_evaluation` what the network sees of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.annotations.ade20k import SegmentationSource
from data_pipeline.annotations.recipes import SegmentationRecipe
from data_pipeline.annotations.segmentation_crop import random_crop
from data_pipeline.streaming.sample_loader import Buffer, Draw, SampleLoader, plain_buffer


class SegmentationBatch(NamedTuple):
    """A slice of a global batch. images: uint8 (B, 3, S, S). labels: uint8 (B, S, S), IGNORE (255)
    where they do not count. start: the global sample index of the first image."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    start: int


class SegmentationLoader(SampleLoader[SegmentationBatch]):
    """Random access to batches of crops; see `SampleLoader` for the order, the threads, and
    `bad_limit`.

    A crop is a function of the seed and the global sample index. buffer: makes the memory of a
    batch of a given shape.
    """

    def __init__(
        self,
        source: SegmentationSource,
        recipe: SegmentationRecipe,
        *,
        global_batch: int,
        seed: int,
        threads: int = 2,
        bad_limit: float = 0.01,
        buffer: Buffer = plain_buffer,
    ) -> None:
        super().__init__(
            _CropReader(source, recipe, seed, buffer),
            global_batch=global_batch,
            seed=seed,
            threads=threads,
            bad_limit=bad_limit,
        )


class _CropReader:
    def __init__(
        self, source: SegmentationSource, recipe: SegmentationRecipe, seed: int, buffer: Buffer
    ) -> None:
        self._source, self._recipe, self._seed, self._buffer = source, recipe, seed, buffer

    def __len__(self) -> int:
        return len(self._source)

    def empty(self, count: int, start: int) -> SegmentationBatch:
        size = self._recipe.size
        return SegmentationBatch(
            self._buffer((count, 3, size, size)), self._buffer((count, size, size)), start
        )

    def batch_bytes(self, count: int) -> int:
        return 4 * count * self._recipe.size**2

    def read(self, row: int, draw: Draw, batch: SegmentationBatch, place: int) -> None:
        found = self._source.read(row)
        batch.images[place], batch.labels[place] = random_crop(
            found.image, found.labels, self._recipe, self._seed, draw.sample
        )
