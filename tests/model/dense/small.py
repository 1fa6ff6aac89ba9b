"""A segmenter and a detector of a few thousand parameters, and images' objects for the latter."""

from __future__ import annotations

import torch

from model.config import Geometry, TransformerConfig
from model.dense.config import BackboneConfig, DetectorConfig, SegmenterConfig, WindowsConfig
from model.dense.detector import Detector, Instances
from model.dense.segmenter import Segmenter

GEOMETRY = Geometry(image_size=64, patch_size=16)
ENCODER = TransformerConfig(dim=32, depth=2, heads=2, decoder_heads=2, dropout=0)


def small_segmenter(*, dropout: float = 0.0) -> Segmenter:
    torch.manual_seed(0)
    config = SegmenterConfig(
        backbone=BackboneConfig(encoder=ENCODER),
        classes=("sky", "sea", "sand"),
        blocks=(0, 0, 1, 1),
        channels=24,
        auxiliary_channels=16,
        dropout=dropout,
    )
    return Segmenter(GEOMETRY, config)


SIZES = [(96, 96), (70, 96)]


def small_detector() -> Detector:
    torch.manual_seed(0)
    windows = WindowsConfig(size=4, global_blocks=(1,), image_size=96)
    config = DetectorConfig(
        backbone=BackboneConfig(encoder=ENCODER, windows=windows),
        classes=("cat", "dog"),
        channels=16,
        linear_width=32,
        anchor_size=8,
        anchors_per_image=32,
        regions_per_image=16,
        proposals=40,
        score_threshold=0.1,
        detections=7,
    )
    return Detector(GEOMETRY, config)


def instances(*boxes: tuple[int, int, int, int]) -> Instances:
    masks = torch.zeros(len(boxes), 96, 96, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return {
        "boxes": torch.tensor(boxes).float().view(-1, 4),
        "labels": torch.arange(len(boxes)) % 2,
        "masks": masks,
    }


TWO, NONE = instances((10, 12, 50, 60), (40, 30, 90, 66)), instances()
