"""Semantic segmentation, as on ADE20k: images and their label maps in, the loss of UperNet out
(mmsegmentation's `upernet_mae-base`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data_pipeline.annotations.ade20k import SegmentationListing, SegmentationSource, list_ade20k
from data_pipeline.storage import Store
from data_pipeline.streaming.segmentation_loader import SegmentationBatch, SegmentationLoader
from model.config import Geometry
from model.dense.config import BackboneConfig, SegmenterConfig
from model.dense.segmenter import Segmenter
from model.device import staging
from trainer.config.schema import RunConfig, SegmenterSection
from trainer.objectives.base import Inputs, on_device
from trainer.objectives.dense import Classes, DenseObjective, pixels_of
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import none_readable


class SegmentObjective(DenseObjective):
    """Trains UperNet on the maps of four blocks, on the training images of ADE20k or of data in its
    layout. BatchNorm is over all ranks' micro batches."""

    layout = "ADE20k"
    published_classes = 150

    def opened(self, listed: SegmentationListing, store: Store, threads: int) -> SegmentationLoader:
        self.source = SegmentationSource(store, listed)
        return SegmentationLoader(
            self.source,
            self.config.segmenter.crops,
            global_batch=self.config.batch.global_batch,
            seed=self.config.seed,
            threads=threads,
            buffer=staging,
        )

    @classmethod
    def listed(cls, config: RunConfig) -> SegmentationListing:
        """The training images. Raises ConfigError where there are none; DataError, StorageError."""
        return list_ade20k(cls.place(config), "training")

    @staticmethod
    def section(config: RunConfig) -> SegmenterSection:
        return config.segmenter

    @staticmethod
    def image_size(config: RunConfig) -> int:
        return config.segmenter.crops.size

    @classmethod
    def build(
        cls, config: RunConfig, geometry: Geometry, backbone: BackboneConfig, classes: Classes
    ) -> Segmenter:
        section = config.segmenter
        sizes = SegmenterConfig(
            backbone=backbone,
            classes=classes,
            blocks=section.blocks,
            channels=section.channels,
            auxiliary_channels=section.auxiliary_channels,
            dropout=section.dropout,
        )
        return Segmenter(geometry, sizes)

    def unseen(self) -> str | None:
        """As `none_readable` says of its images with their labels."""
        return none_readable(len(self.source), self.source.read)

    def batch(self, step: int, offset: int, count: int) -> SegmentationBatch:
        """Crops and their label maps."""
        batch: SegmentationBatch = self.loader.batch(step, offset, count)
        return batch

    def inputs(self, batch: SegmentationBatch, step: int, device: torch.device) -> Inputs:
        """images: (B, 3, S, S) float32 in [0, 1]. labels: (B, S, S) uint8, 255 where they do not
        count."""
        return {
            "images": pixels_of(device, batch.images),
            "labels": on_device(device, batch.labels),
        }

    def look_at_data(self) -> str:
        classes = len(self.source.listing.classes)
        return f"{self.config.data.images}: {len(self.source):,} images, {classes:,} classes"

    @classmethod
    def blank_batch(cls, config: RunConfig, count: int, masked: float) -> SegmentationBatch:
        size = cls.image_size(config)
        images = np.zeros((count, 3, size, size), np.uint8)
        return SegmentationBatch(images, np.zeros((count, size, size), np.uint8), start=0)

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """For 150 classes."""

        def inputs(batch: SegmentationBatch) -> Inputs:
            labels = torch.empty(batch.labels.shape, dtype=torch.uint8, device=META)
            return {"images": pixels_of(META, batch.images), "labels": labels}

        return Rehearsal(cls.network_for(config, cls.some_classes()), inputs)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return f"`addp evaluate {run} --suite segmentation`"
