"""Fine-tuning and linear probing (ADDP section 4.2): images and labels in, the loss of a classifier
out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from data_pipeline.images.images import ImageSource
from data_pipeline.images.sources import split_of
from data_pipeline.streaming.image_loader import ImageBatch, ImageLoader
from model.addp import ADDP
from model.classifier import Classifier
from model.config import ClassifierConfig
from model.errors import ConfigError
from model.networks import Network
from model.transformer import drop_paths
from model.weights import fingerprint, load_network
from trainer.config.schema import RunConfig
from trainer.objectives.augmentation import Augmentation
from trainer.objectives.given import Beginning


def images_fingerprint(source: ImageSource) -> str:
    """Of classes, ids and labels, wherever the images lie."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for image in source.images:
        digest.update(f"{image.id}\n{image.label}\n".encode())
    return digest.hexdigest()


class ClassifyObjective:
    """A linear probe sees crops and flips only, as in MAE's protocol."""

    def __init__(self, config: RunConfig) -> None:
        section, data = config.classifier, config.data
        if data.images is None:
            raise ConfigError(
                "objective classify needs data.images: class folders, or WebDataset shards"
            )
        if data.views.size != config.tokenizer.sizes.image_size:
            raise ConfigError(
                f"data.views.size = {data.views.size} must equal tokenizer.sizes.image_size = "
                f"{config.tokenizer.sizes.image_size}, the size that the encoder was trained at"
            )
        source = split_of(data.images, "train", data.held_out)
        self.loader = ImageLoader(
            source, data.views, global_batch=config.batch.global_batch, seed=config.seed
        )
        self.epochs = self.loader.schedule
        linear = section.method == "linear"
        network = Classifier(
            config.geometry,
            ClassifierConfig(
                encoder=config.addp.sizes.model_copy(update={"dropout": section.dropout}),
                classes=source.classes,
                method=section.method,
                tokenizer_norm=section.tokenizer_norm,
            ),
        )
        self.frozen: dict[str, str] = {}
        self.beginning: Beginning | None = None
        if config.addp.weights is not None:
            pretrained = load_network(
                config.addp.weights, "addp", config=config.addp.sizes, geometry=config.geometry
            )
            assert isinstance(pretrained, ADDP)
            network.take(pretrained)
            self.frozen = {"pretrained": fingerprint(pretrained)}
            self.beginning = Beginning(
                "addp.weights", config.addp.weights, self.frozen["pretrained"]
            )
        elif linear:
            raise ConfigError(
                "classifier.method = linear needs addp.weights, the encoder that is probed"
            )
        if not linear:
            drop_paths(network.blocks, section.drop_path)
        self._augment = None if linear else Augmentation(config.augmentation, len(source.classes))
        self._smoothing = 0.0 if linear else config.label_smoothing
        self._classes = len(source.classes)
        self.result: Network = network
        self.network: nn.Module = network
        self.data_fingerprint = images_fingerprint(source)
        self.order: dict[str, Any] = {}

    def batch(self, step: int, offset: int, count: int) -> ImageBatch:
        return self.loader.batch(step, offset, count)

    def close(self) -> None:
        self.loader.close()

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> dict[str, Any]:
        images = torch.from_numpy(batch.pixels).to(device).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(batch.labels).to(device)
        if self._augment is None:
            target = torch.nn.functional.one_hot(labels, self._classes).float()
        else:
            images, target = self._augment(images, labels)
        return {"images": images, "target": target, "smoothing": self._smoothing}
