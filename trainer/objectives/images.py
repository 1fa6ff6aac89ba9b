"""What the objectives that read images share: the loader, and pixels on the device."""

from __future__ import annotations

import hashlib
import json
import time

import torch
from torch import Tensor

from data_pipeline.images.images import ImageSource
from data_pipeline.images.sources import split_of
from data_pipeline.streaming.image_loader import ImageBatch, ImageLoader
from model.errors import ConfigError
from trainer.config.schema import RunConfig
from trainer.objectives.base import Objective, on_device


def images_fingerprint(source: ImageSource) -> str:
    """Hash of classes, ids and labels, wherever the images lie."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for image in source.images:
        digest.update(f"{image.id}\n{image.label}\n".encode())
    return digest.hexdigest()


class ImageObjective(Objective):
    """Reads the training images of `data.images`, in views of the size that the networks have."""

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        """Raises ConfigError where there are no images, or their views have another size than the
        networks; DataError, StorageError."""
        super().__init__(config, fresh)
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
        started = time.monotonic()
        self.source = split_of(data.images, "train", data.held_out)
        self.loader = ImageLoader(
            self.source, data.views, global_batch=config.batch.global_batch, seed=config.seed
        )
        self.opening = time.monotonic() - started
        self.epochs = self.loader.schedule
        self.data_fingerprint = images_fingerprint(self.source)

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        """Views and labels of the samples."""
        return self.loader.batch(step, offset, count)

    def close(self) -> None:
        self.loader.close()

    def look_at_data(self) -> str:
        return f"{self.config.data.images}: {self.epochs.samples:,} images"


def pixels_on(device: torch.device, batch: ImageBatch) -> Tensor:
    """The images of a batch on the device: (B, 3, H, W) float32 in [0, 1]."""
    return on_device(device, batch.pixels).permute(0, 3, 1, 2).float() / 255
