"""An objective that the program does not have: tell by how much an image was rotated (RotNet, arXiv
1803.07728). `test_toy.py` registers it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from data_pipeline.streaming.image_loader import ImageBatch
from model.classifier import Classifier
from model.config import ClassifierConfig
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import ImageObjective, Listed, pixels_on
from trainer.objectives.registry import IMAGE_KEYS, Entry

ANGLES = ("0", "90", "180", "270")
ENTRY = Entry(
    "tests.trainer.objectives.rotation:RotationObjective",
    title="Training to tell rotations",
    label="rotations",
    network_kind="classifier",
    sizes="addp",
    keys=(*IMAGE_KEYS, "addp"),
)


class RotationObjective(ImageObjective):
    def __init__(
        self, config: RunConfig, fresh: bool = False, listed: Listed | None = None
    ) -> None:
        super().__init__(config, fresh, listed)
        network, _ = self.networks(config)
        self.exported = self.network = cast(Classifier, network)

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> Inputs:
        images = pixels_on(device, batch)
        turns = torch.randint(len(ANGLES), (len(images),))
        turned = [image.rot90(int(n), (1, 2)) for image, n in zip(images, turns, strict=True)]
        target = F.one_hot(turns, len(ANGLES)).float().to(device)
        return {"images": torch.stack(turned), "target": target, "smoothing": 0.0}

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        sizes = ClassifierConfig(encoder=config.addp.sizes, classes=ANGLES)
        return Classifier(config.geometry, sizes), []

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        def inputs(batch: ImageBatch) -> Inputs:
            target = torch.empty(len(batch.labels), len(ANGLES), device=META)
            return {"images": pixels_on(META, batch), "target": target, "smoothing": 0.0}

        return Rehearsal(cls.networks(config)[0], inputs)
