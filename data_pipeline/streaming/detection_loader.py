"""Batches of images and the instances that they show.

    index = read_coco("s3://bucket/coco", "train2017")      # on rank 0, and sent to the others
    source = DetectionSource(locate("s3://bucket/coco").store, index)
    loader = DetectionLoader(source, DetectionRecipe(), global_batch=64, seed=0)
    batch = loader.batch(step, offset, count)               # this rank's slice of a global batch
    batch.instances[0].boxes, batch.instances[0].masks()

It reads the images that show at least one single thing, as detectron2 does: images without any, or
with crowds alone, are not trained on. For evaluation, `source.image(row)` gives any image as it is
stored, `fitted(...)` says where the network sees it, and `index.ground_truth(rows)` has its
annotations, with crowds, in COCO's own form.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.annotations.instances import Instances, placed
from data_pipeline.annotations.pycoco import mask_api
from data_pipeline.annotations.recipes import DetectionRecipe
from data_pipeline.annotations.scale_jitter import jitter
from data_pipeline.images.images import BadImage, read_image
from data_pipeline.storage import Store
from data_pipeline.streaming.sample_loader import Buffer, Draw, SampleLoader, plain_buffer
from model.errors import DataError

_INSTANCES = 10  # of an image, about, for the memory of their masks


class DetectionSource:
    """The images of an index, where they lie. Threads may share it."""

    def __init__(self, store: Store, index: CocoIndex) -> None:
        self.store, self.index = store, index

    def image(self, row: int) -> Image.Image:
        """Read an image, RGB. Raises BadImage if it cannot be read, or has another size than its
        annotations are for; StorageError."""
        entry = self.index.images[row]
        image = read_image(self.store, entry)
        height, width = map(int, self.index.sizes[row])
        if image.size != (width, height):
            raise BadImage(
                entry.id,
                f"{image.width} x {image.height} pixels, but its annotations are for "
                f"{width} x {height}",
            )
        return image


class DetectionBatch(NamedTuple):
    """A slice of a global batch. images: uint8 (B, 3, S, S). instances: of each image. start: the
    global sample index of the first image."""

    images: NDArray[np.uint8]
    instances: list[Instances]
    start: int


class DetectionLoader(SampleLoader[DetectionBatch]):
    """Random access to batches of jittered images; see `SampleLoader` for the order, the threads,
    and `bad_limit`.

    The jitter is a function of the seed and the global sample index. buffer: makes the memory of a
    batch of a given shape. Raises DataError if no image shows a single thing, ConfigError where
    pycocotools is needed and missing.
    """

    def __init__(
        self,
        source: DetectionSource,
        recipe: DetectionRecipe,
        *,
        global_batch: int,
        seed: int,
        threads: int = 2,
        bad_limit: float = 0.01,
        buffer: Buffer = plain_buffer,
    ) -> None:
        super().__init__(
            _JitterReader(source, recipe, seed, buffer),
            global_batch=global_batch,
            seed=seed,
            threads=threads,
            bad_limit=bad_limit,
        )


class _JitterReader:
    def __init__(
        self, source: DetectionSource, recipe: DetectionRecipe, seed: int, buffer: Buffer
    ) -> None:
        self._source, self._recipe, self._seed, self._buffer = source, recipe, seed, buffer
        self._rows = source.index.rows_with_instances()
        if not len(self._rows):
            raise DataError(f"no image in {source.store.url} has an annotation of a single thing")
        if source.index.shapes is not None:
            mask_api()  # now, and not in a thread that reads ahead

    def __len__(self) -> int:
        return len(self._rows)

    def empty(self, count: int, start: int) -> DetectionBatch:
        size = self._recipe.size
        instances: list[Instances] = [_NOTHING] * count
        return DetectionBatch(self._buffer((count, 3, size, size)), instances, start)

    def batch_bytes(self, count: int) -> int:
        return count * self._recipe.size**2 * (3 + _INSTANCES // 8)

    def read(self, row: int, draw: Draw, batch: DetectionBatch, place: int) -> None:
        row = int(self._rows[row])
        image = self._source.image(row)
        placement = jitter(*image.size, self._recipe, self._seed, draw.sample)
        batch.images[place] = placement.padded(placement.cut(image, Image.Resampling.BILINEAR))
        batch.instances[place] = placed(self._source.index.annotated(row), placement)


_NOTHING = Instances(
    image_id=-1,
    original_size=(0, 0),
    size=(0, 0),
    boxes=np.empty((0, 4), np.float32),
    labels=np.empty(0, np.int64),
    packed=None,
    areas=np.empty(0, np.float32),
    ids=np.empty(0, np.int64),
)
