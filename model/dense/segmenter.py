"""Semantic segmentation: UperNet on a plain ViT (mmsegmentation's `configs/mae`).

Shapes: B images of H x W pixels, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Geometry
from model.dense.backbone import Backbone
from model.dense.config import SegmenterConfig
from model.dense.pyramids import FourStrides
from model.dense.upernet import heads

UNLABELLED = 255  # the label of pixels that do not count


class Segmenter(nn.Module):
    """A backbone, its maps at four strides, and UperNet's heads. Called with images and labels, it
    returns the loss.

    Raises ConfigError if transformers is missing.
    """

    kind = "segmenter"

    def __init__(self, geometry: Geometry, config: SegmenterConfig) -> None:
        super().__init__()
        self.geometry, self.config = geometry, config
        self.backbone = Backbone(geometry, config.backbone)
        self.pyramid = FourStrides(config.backbone.encoder.dim)
        self.head, self.auxiliary_head = heads(config)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of `losses`, a scalar."""
        return torch.stack(list(self.losses(images, labels).values())).sum()

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return float32 scalars, weighted as they are summed: `segmentation`, the cross-entropy of
        UperNet's logits, and `auxiliary`, that of the FCN head's.

        images: (B, 3, H, W) in [0, 1], H and W multiples of twice the patch. labels: (B, H, W), of
        any type of integers, from 0 to C - 1, or 255 for pixels that do not count. Logits are
        resized to the labels. The mean is over the pixels that count; if none does, it is 0.
        """
        maps = self._maps(images)
        return {
            "segmentation": _cross_entropy(self.head(maps), labels),
            "auxiliary": self.config.auxiliary_weight
            * _cross_entropy(self.auxiliary_head(maps), labels),
        }

    def _maps(self, images: Tensor) -> list[Tensor]:
        return self.pyramid(self.backbone(images, self.config.blocks))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of whole images in one pass, (B, C, H, W) float32.

        images: (B, 3, H, W) in [0, 1], of any size. To the bottom and right they are filled up
        with ImageNet's mean to a multiple of twice the patch.
        """
        height, width = images.shape[-2:]
        unit = 2 * self.geometry.patch_size
        filled = self._filled(images, height + -height % unit, width + -width % unit)
        logits = self.head(self._maps(filled))
        return _resized(logits, filled.shape[-2:])[..., :height, :width]

    def sliding_logits(self, images: Tensor, size: int, stride: int) -> Tensor:
        """Return the mean of the logits of overlapping windows, (B, C, H, W) float32, as
        mmsegmentation does it.

        images: (B, 3, H, W) in [0, 1], of any size. size: side of the square windows, pixels; of
        smaller images a window is the whole side. stride: from one window to the next; the last one
        of a row or column ends with the image.
        """
        height, width = images.shape[-2:]
        total = images.new_zeros((len(images), len(self.config.classes), height, width)).float()
        times = total.new_zeros((height, width))
        for top in _starts(height, size, stride):
            for left in _starts(width, size, stride):
                at = (..., slice(top, top + size), slice(left, left + size))
                total[at] += self.logits(images[at])
                times[at] += 1
        return total / times

    def _filled(self, images: Tensor, height: int, width: int) -> Tensor:
        canvas = self.backbone.mean.to(images.dtype).expand(len(images), -1, height, width).clone()
        canvas[..., : images.shape[-2], : images.shape[-1]] = images
        return canvas


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows begin, so that they cover 0 .. length - 1."""
    last = max(0, length - size)
    return sorted({min(start, last) for start in range(0, last + stride, stride)})


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.long()
    # Of each pixel: the kernel that also adds them up does so in any order on CUDA.
    losses = F.cross_entropy(
        _resized(logits, labels.shape[-2:]), labels, ignore_index=UNLABELLED, reduction="none"
    )
    return losses.sum() / (labels != UNLABELLED).sum().clamp_min(1)
