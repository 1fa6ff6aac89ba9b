"""Detection and instance segmentation, as on COCO: images and the objects that they show in, the
losses of Mask R-CNN out (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.coco_index import CocoIndex
from data_pipeline.annotations.instances import Instances as Shown
from data_pipeline.storage import Store
from data_pipeline.streaming.detection_loader import (
    DetectionBatch,
    DetectionLoader,
    DetectionSource,
)
from model.config import Geometry
from model.dense.config import BackboneConfig, DetectorConfig
from model.dense.detector import Detector, Instances
from model.device import staging
from model.errors import DataError
from trainer.config.schema import DetectorSection, RunConfig
from trainer.objectives.base import Inputs, on_device
from trainer.objectives.dense import Classes, DenseObjective, pixels_of
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import none_readable

_HOLDING = 4  # one in so many regions is given a mask, at most


class DetectObjective(DenseObjective):
    """Trains Mask R-CNN on ViTDet's pyramid, on the training images of COCO or of data in its
    layout that show at least one single thing."""

    layout = "COCO"
    published_classes = 80
    one_shape = False  # masks are computed of as many regions as hold an object

    def opened(self, listed: CocoIndex, store: Store, threads: int) -> DetectionLoader:
        self.source = DetectionSource(store, listed)
        return DetectionLoader(
            self.source,
            self.config.detector.jitter,
            global_batch=self.config.batch.global_batch,
            seed=self.config.seed,
            threads=threads,
            buffer=staging,
        )

    @classmethod
    def listed(cls, config: RunConfig) -> CocoIndex:
        """The annotations of the training images. Raises ConfigError where there are none;
        DataError where they do not outline what they name; StorageError."""
        place = cls.place(config)
        index = read_coco(place, config.detector.split)
        if index.shapes is None:
            raise DataError(
                f"{place} has boxes alone; a detector also learns masks, and needs annotations "
                "with outlines"
            )
        return index

    @staticmethod
    def section(config: RunConfig) -> DetectorSection:
        return config.detector

    @staticmethod
    def image_size(config: RunConfig) -> int:
        return config.detector.jitter.size

    @classmethod
    def build(
        cls, config: RunConfig, geometry: Geometry, backbone: BackboneConfig, classes: Classes
    ) -> Detector:
        section = config.detector
        sizes = DetectorConfig(
            backbone=backbone,
            classes=classes,
            channels=section.channels,
            linear_width=section.linear_width,
            anchor_size=section.anchor_size,
            anchors_per_image=section.anchors_per_image,
            regions_per_image=section.regions_per_image,
            proposals=section.proposals,
        )
        return Detector(geometry, sizes)

    def unseen(self) -> str | None:
        """As `none_readable` says of its images."""
        return none_readable(len(self.source.index.images), self.source.image)

    def batch(self, step: int, offset: int, count: int) -> DetectionBatch:
        """Squares with jittered images, and what they show."""
        batch: DetectionBatch = self.loader.batch(step, offset, count)
        return batch

    def inputs(self, batch: DetectionBatch, step: int, device: torch.device) -> Inputs:
        """images: (B, 3, S, S) float32 in [0, 1]. sizes: heights and widths of what the squares
        hold. instances: the objects of each image, see `Instances`."""
        side = batch.images.shape[-1]
        instances: list[Instances] = [
            {
                "boxes": on_device(device, found.boxes),
                "labels": on_device(device, found.labels),
                "masks": _masks(device, found.packed, side),
            }
            for found in batch.instances
        ]
        return {
            "images": pixels_of(device, batch.images),
            "sizes": [found.size for found in batch.instances],
            "instances": instances,
        }

    def look_at_data(self) -> str:
        index = self.source.index
        return (
            f"{self.config.data.images}: {self.epochs.samples:,} images that show something, "
            f"{len(index.labels):,} annotations, {len(index.classes):,} classes"
        )

    @classmethod
    def blank_batch(cls, config: RunConfig, count: int, masked: float) -> DetectionBatch:
        """Images that show nothing."""
        size = cls.image_size(config)
        images = np.zeros((count, 3, size, size), np.uint8)
        return DetectionBatch(images, [_nothing(size)] * count, start=0)

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """For 80 classes, and with as many regions as there are in a full batch. What is chosen by
        values is left out: anchors, matching, suppression and pooling."""
        network = cast(Detector, cls.network_for(config, cls.some_classes()))

        def inputs(batch: DetectionBatch) -> Inputs:
            return {"images": pixels_of(META, batch.images)}

        return Rehearsal(_Layers(network), inputs)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return f"`addp evaluate {run} --suite detection`"


class _Layers(nn.Module):
    """All layers of a detector, each called as often as in training."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S), on the meta device -> a scalar."""
        network, regions = self.detector, self.detector.heads.regions
        c = network.config
        maps = network.pyramid(*network.backbone(images, (c.backbone.encoder.depth - 1,)))
        count = len(images) * c.regions_per_image
        boxes = regions.box_head(maps["p2"].new_empty(count, c.channels, 7, 7))
        holding = maps["p2"].new_empty(max(1, count // _HOLDING), c.channels, 14, 14)
        masks = regions.mask_predictor(regions.mask_head(holding))
        scores, shifts = network.heads.rpn.head(list(maps.values()))
        found = [*scores, *shifts, *regions.box_predictor(boxes), masks]
        return torch.stack([x.float().sum() for x in found]).sum()


def _nothing(side: int) -> Shown:
    """An image that fills a square and shows nothing."""
    return Shown(
        image_id=0,
        original_size=(side, side),
        size=(side, side),
        boxes=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int64),
        packed=np.empty((0, side, -(-side // 8)), np.uint8),
        areas=np.empty(0, np.float32),
        ids=np.empty(0, np.int64),
    )


def _masks(device: torch.device, packed: NDArray[np.uint8] | None, side: int) -> Tensor:
    """Unpack masks of eight pixels a byte, (n, S, ceil(S / 8)), on the device: (n, S, S) bool.
    They are most of what a batch has."""
    assert packed is not None
    bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    return (on_device(device, packed)[..., None] >> bits & 1).flatten(-2)[..., :side].bool()
