"""Fine-tuning and linear probing (ADDP section 4.2): images and labels in, the loss of a classifier
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.streaming.image_loader import ImageBatch
from model.addp import ADDP
from model.classifier import Classifier
from model.compiling import Compiler
from model.config import ClassifierConfig
from model.errors import ConfigError
from model.resizing import Resized, for_image_size
from model.transformer import drop_paths
from model.weights import fingerprint, load_network
from trainer.config.schema import RunConfig
from trainer.engine.optimizers import layerwise_groups
from trainer.objectives.augmentation import Augmentation
from trainer.objectives.base import Inputs, on_device
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import ImageObjective, Listed, pixels_on
from trainer.objectives.initial_weights import InitialWeights


class ClassifyObjective(ImageObjective):
    """Trains a classifier on ADDP's encoder, as a whole or its head alone. A linear probe sees
    crops and flips only, as in MAE's protocol."""

    def __init__(
        self, config: RunConfig, fresh: bool = False, listed: Listed | None = None
    ) -> None:
        super().__init__(config, fresh, listed)
        classes = self.source.classes
        linear = config.classifier.method == "linear"
        network = self._network(config, classes)
        if config.addp.weights is not None:
            pretrained = _encoder(config, config.addp.weights)
            fitting, resized = for_image_size(pretrained, config.geometry.image_size)
            network.take(fitting)
            self.frozen = {"pretrained": fingerprint(pretrained)}
            self.initial_weights = InitialWeights(
                "addp.weights", config.addp.weights, self.frozen["pretrained"], resized
            )
        elif linear:
            raise ConfigError(
                "classifier.method = linear needs addp.weights, the encoder that is probed"
            )
        self._augment = None if linear else Augmentation(config.augmentation, len(classes))
        self._smoothing = 0.0 if linear else config.label_smoothing
        self._classes = len(classes)
        self.exported = self.network = network

    @staticmethod
    def _network(config: RunConfig, classes: tuple[str, ...]) -> Classifier:
        """The network as it trains, with fresh weights."""
        section = config.classifier
        network = Classifier(
            config.geometry,
            ClassifierConfig(
                encoder=config.addp.sizes.model_copy(update={"dropout": section.dropout}),
                classes=classes,
                method=section.method,
                tokenizer_norm=section.tokenizer_norm,
            ),
        )
        if section.method != "linear":
            drop_paths(network.blocks, section.drop_path)
        return network

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> Inputs:
        """images: (B, 3, H, W) float32 in [0, 1]. target: (B, classes) float32, each row a
        distribution."""
        images = pixels_on(device, batch)
        labels = on_device(device, batch.labels)
        if self._augment is None:
            target = torch.nn.functional.one_hot(labels, self._classes).float()
        else:
            images, target = self._augment(images, labels)
        return {"images": images, "target": target, "smoothing": self._smoothing}

    def use_compiler(self, compiler: Compiler | None) -> bool:
        """As the base class says. A linear probe waits for its images, and not for its encoder."""
        finetunes = self.config.classifier.method == "finetune"
        return finetunes and super().use_compiler(compiler)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, or two, for each layer: the learning rate falls from the head down."""
        return layerwise_groups(
            self.network.named_parameters(),
            self.config.optimizer.weight_decay,
            depth=self.config.addp.sizes.depth,
            layer_decay=self.config.classifier.layer_decay,
        )

    @classmethod
    def check_weights(cls, config: RunConfig) -> dict[Path, Resized | None]:
        if config.addp.weights is None:
            return {}
        pretrained = _encoder(config, config.addp.weights)
        _, resized = for_image_size(pretrained, config.geometry.image_size)
        return {config.addp.weights: resized}

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        """The classifier has 1,000 classes here: how many there are shows when the data are
        read."""
        classes = tuple(map(str, range(1000)))
        sizes = ClassifierConfig(
            encoder=config.addp.sizes, classes=classes, method=config.classifier.method
        )
        return Classifier(config.geometry, sizes), []

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """For 1,000 classes, and without the augmentation, which is over before the network
        computes."""
        network = cls._network(config, tuple(map(str, range(1000))))

        def inputs(batch: ImageBatch) -> Inputs:
            target = torch.empty(len(batch.labels), len(network.config.classes), device=META)
            return {"images": pixels_on(META, batch), "target": target, "smoothing": 0.0}

        return Rehearsal(network, inputs)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return f"`addp evaluate {run} --suite accuracy --images IMAGES --held-out 1`"


def _encoder(config: RunConfig, file: Path) -> ADDP:
    """The network of a file, of the size that its images had."""
    network = load_network(
        file, "addp", config=config.addp.sizes, geometry=config.geometry, any_size=True
    )
    assert isinstance(network, ADDP)
    return network
