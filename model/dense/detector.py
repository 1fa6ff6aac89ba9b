"""Detection and instance segmentation: Mask R-CNN on ViTDet (arXiv 2203.16527; detectron2's
`mask_rcnn_vitdet`).

Shapes: B images of H x W pixels. Boxes are x1, y1, x2, y2 in pixels, where 0 is the left or upper
edge of the first pixel. Labels count classes from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from model.config import Geometry
from model.dense.backbone import Backbone
from model.dense.config import DetectorConfig
from model.dense.pyramids import SimplePyramid

if TYPE_CHECKING:
    from model.dense.mask_rcnn import Found


class Instances(TypedDict):
    """The objects of one image; there may be none.

    boxes: (N, 4) float32, of positive width and height, within the image. labels: (N,) int64.
    masks: (N, H, W) bool.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Detector(nn.Module):
    """A backbone, its pyramid, and Mask R-CNN's heads. Called with images and their objects, it
    returns the loss.

    Raises ConfigError if torchvision is missing.
    """

    kind = "detector"

    def __init__(self, geometry: Geometry, config: DetectorConfig) -> None:
        from model.dense.mask_rcnn import MaskRCNN  # here, since torchvision is an extra

        super().__init__()
        self.geometry, self.config = geometry, config
        self.backbone = Backbone(geometry, config.backbone)
        self.pyramid = SimplePyramid(config.backbone.encoder.dim, config.channels)
        self.heads = MaskRCNN(config, stride=geometry.patch_size / 4)

    def forward(
        self, images: Tensor, sizes: list[tuple[int, int]], instances: list[Instances]
    ) -> Tensor:
        """Return the sum of `losses`, a scalar."""
        return torch.stack(list(self.losses(images, sizes, instances).values())).sum()

    def losses(
        self, images: Tensor, sizes: list[tuple[int, int]], instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Return float32 scalars: of the proposal network `objectness` and `proposals`, of the
        regions `classes`, `boxes` and `masks`.

        images: (B, 3, H, W) in [0, 1], H and W multiples of twice the patch. sizes: height and
        width of what each image holds, from its upper left corner; the rest may have any values.
        instances: the objects of each image. The network must be in training mode. Which anchors
        and regions count is drawn from PyTorch's generators.
        """
        targets = [
            {
                "boxes": of_image["boxes"],
                "labels": of_image["labels"] + 1,  # 0 is the background
                "masks": of_image["masks"],
            }
            for of_image in instances
        ]
        _, losses = self.heads(self._maps(images, sizes), sizes, targets)
        return losses

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: list[tuple[int, int]]) -> list[Found]:
        """Return the objects that are found in each image, in pixels of `images`, at most
        `config.detections` of each. The network must be in eval mode; images and sizes as for
        `losses`. `model.dense.regions.pasted` makes masks of the image's size."""
        found, _ = self.heads(self._maps(images, sizes), sizes)
        return [of_image._replace(labels=of_image.labels - 1) for of_image in found]

    def _maps(self, images: Tensor, sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Return the pyramid's maps. What fills up an image becomes ImageNet's mean, as in
        detectron2, where it is zero once pixels are normalised."""
        filled = self.backbone.mean.to(images.dtype).expand_as(images).clone()
        for canvas, image, (height, width) in zip(filled, images, sizes, strict=True):
            canvas[:, :height, :width] = image[:, :height, :width]
        last = self.config.backbone.encoder.depth - 1
        return self.pyramid(*self.backbone(filled, (last,)))
