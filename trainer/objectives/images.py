"""What the objectives that read images share: the loader, and pixels on the device. Those of dense
transfer have annotated images, and a file of their own (`dense.py`)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.images.images import BadImage, ImageEntry, ImageSource, read_image
from data_pipeline.images.location import locate, recorded
from data_pipeline.images.sources import split_of
from data_pipeline.images.streamed import gathered
from data_pipeline.storage import StorageError, is_remote
from data_pipeline.storage.urls import is_url
from data_pipeline.streaming.image_loader import ImageBatch, ImageLoader
from model.device import staging
from model.errors import ConfigError
from trainer.config.schema import RunConfig
from trainer.distributed.world import own_cores
from trainer.objectives.base import Objective

_MOST_THREADS = 64  # and connections to a store
_REMOTE = 4  # threads a core where images come from a store: most of them wait for it
_LOOKED_AT = 8  # images, on each rank, at a start


def images_fingerprint(source: ImageSource) -> str:
    """Hash of classes, ids and labels, wherever the images lie."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for image in source.images:
        digest.update(f"{image.id}\n{image.label}\n".encode())
    return digest.hexdigest()


def reading_threads(location: str) -> int:
    """How many threads of this rank read and decode the images of a source."""
    remote = is_url(location) or is_remote(location)
    return min(_MOST_THREADS, max(2, own_cores()) * (_REMOTE if remote else 1))


def none_readable(count: int, read: Callable[[int], object]) -> str | None:
    """Read a few of so many samples. Where none of them can be read, return why not the last:
    single ones may be damaged. read: raises BadImage or StorageError."""
    reason = None
    for row in range(0, count, max(1, count // _LOOKED_AT))[:_LOOKED_AT]:
        try:
            read(row)
        except (BadImage, StorageError) as error:
            reason = str(error)
        else:
            return None
    return reason


class Listed(NamedTuple):
    """The images of a run, as rank 0 lists them for all ranks; some 50 bytes an image when sent.
    classes: their names, which the labels of images index."""

    images: tuple[ImageEntry, ...]
    classes: tuple[str, ...]


class ImageObjective(Objective):
    """Reads the training images of `data.images`, in views of the size that the networks have."""

    def __init__(
        self, config: RunConfig, fresh: bool = False, listed: Listed | None = None
    ) -> None:
        """listed: the images, where rank 0 has listed them for all ranks; else they are listed
        here. Raises what `listed` raises."""
        super().__init__(config, fresh)
        images, classes = listed or self.listed(config)
        assert config.data.images is not None
        store = locate(config.data.images, commands=True).store
        self.source = ImageSource(gathered(store, images), images, classes)
        started = time.monotonic()
        self.loader = ImageLoader(
            self.source,
            config.data.views,
            global_batch=config.batch.global_batch,
            seed=config.seed,
            threads=reading_threads(config.data.images),
            buffer=staging,
        )
        self.opening = time.monotonic() - started
        self.epochs = self.loader.schedule
        self.data_fingerprint = images_fingerprint(self.source)

    @classmethod
    def listed(cls, config: RunConfig) -> Listed:
        """The training images. Raises ConfigError where there are none, or their views have another
        size than the networks; DataError, StorageError."""
        data, size = config.data, config.tokenizer.sizes.image_size
        if data.images is None:
            raise ConfigError(
                f"objective {config.objective} needs data.images: "
                "class folders, or WebDataset shards"
            )
        if data.views.size != size:
            raise ConfigError(
                f"data.views.size = {data.views.size} must equal tokenizer.sizes.image_size = "
                f"{size}, the size that the networks are made for"
            )
        source = split_of(data.images, "train", data.held_out, commands=True)
        return Listed(source.images, source.classes)

    def unseen(self) -> str | None:
        """As `none_readable` says of its images."""
        source = self.source
        return none_readable(
            len(source.images), lambda row: read_image(source.store, source.images[row])
        )

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        """Views and labels of the samples."""
        return self.loader.batch(step, offset, count)

    @classmethod
    def blank_batch(cls, config: RunConfig, count: int, masked: float) -> ImageBatch:
        size = config.tokenizer.sizes.image_size
        pixels = np.zeros((count, size, size, 3), np.uint8)
        return ImageBatch(pixels, labels=np.zeros(count, np.int64), start=0)

    def close(self) -> None:
        self.loader.close()

    def look_at_data(self) -> str:
        return f"{recorded(self.config.data.images or '')}: {self.epochs.samples:,} images"


def pixels_on(device: torch.device, batch: ImageBatch) -> Tensor:
    """The images of a batch on the device: (B, 3, H, W) float32 in [0, 1]. Bytes go over; they
    become float32 there."""
    pixels = torch.from_numpy(batch.pixels).to(device, non_blocking=True)
    return pixels.permute(0, 3, 1, 2).float() / 255
