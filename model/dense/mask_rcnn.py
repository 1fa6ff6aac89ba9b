"""Mask R-CNN's heads as ViTDet has them, made of torchvision's parts. No other file imports
torchvision.

Of torchvision are the anchors, the matching and sampling, the coding of boxes, the suppression of
overlapping ones, and the layers of the heads. What detectron2 does otherwise is done here as there:
losses of boxes are L1 and divided by the number of samples, pooling is aligned, targets of masks
are binary. torchvision counts classes from 1, with the background as 0.

Every part of the network computes in each step, whatever an image holds, so that no rank lacks a
gradient that another one has: an image without proposals gets one as large as itself, and where no
region holds an object, the mask head is given one whose loss is multiplied by 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.dense.config import DetectorConfig
from model.dense.pyramids import ChannelNorm
from model.dense.regions import Pooling, RegionPool, pooled
from model.dense.torchvision_parts import prepare
from model.errors import ConfigError

_OPERATORS = prepare()
try:
    import torchvision.extension
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import (
        RegionProposalNetwork,
        RPNHead,
        concat_box_prediction_layers,
    )
    from torchvision.ops import roi_align
except ImportError as error:
    raise ConfigError(
        "detection needs the heads of Mask R-CNN from torchvision: pip install 'addp[detect]' "
        f"({error})"
    ) from error
if not _OPERATORS:
    # torchvision's function for suppression asks this one whether there is an operator.
    torchvision.extension._has_ops = lambda: True

# Targets of one image: boxes (N, 4) float32 as x1, y1, x2, y2; labels (N,) int64, from 1; masks
# (N, H, W) bool.
Target = dict[str, Tensor]

_NAMES = ("p2", "p3", "p4", "p5")  # of the maps that regions are pooled from
_BOX_CELLS, _MASK_CELLS = 7, 14
_TALLNESS = (0.5, 1.0, 2.0)  # of anchors: height over width


class Found(NamedTuple):
    """The objects of one image, by falling scores. boxes: (N, 4) float32 as x1, y1, x2, y2, pixels.
    labels: (N,) int64. scores: (N,). masks: (N, 28, 28), probabilities within the boxes."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor


class MaskRCNN(nn.Module):
    """The heads on a pyramid: a region proposal network, then boxes and masks of its regions.

    stride: of the pyramid's first map, pixels. Draws from PyTorch's generators which anchors and
    regions count, as dropout does.
    """

    def __init__(self, config: DetectorConfig, stride: float) -> None:
        super().__init__()
        c, classes = config, len(config.classes) + 1
        canonical = 7 * c.anchor_size
        pooling: Pooling = _by_operator if _OPERATORS else pooled
        anchors = _Anchors(c.anchor_size, levels=len(_NAMES) + 1, stride=stride)
        self.rpn = _Proposals(
            anchors,
            _ProposalHead(c.channels, len(_TALLNESS), conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=c.anchors_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * c.proposals, "testing": c.proposals},
            post_nms_top_n={"training": c.proposals, "testing": c.proposals},
            nms_thresh=0.7,
        )
        pools = [
            RegionPool(size, _NAMES, stride=stride, canonical=canonical, pooling=pooling)
            for size in (_BOX_CELLS, _MASK_CELLS)
        ]
        four = [c.channels] * 4
        self.regions = _Regions(
            pools[0],
            FastRCNNConvFCHead(
                (c.channels, _BOX_CELLS, _BOX_CELLS), four, [c.linear_width], ChannelNorm
            ),
            FastRCNNPredictor(c.linear_width, classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=c.regions_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=c.score_threshold,
            nms_thresh=0.5,
            detections_per_img=c.detections,
            mask_roi_pool=pools[1],
            mask_head=MaskRCNNHeads(c.channels, four, 1, ChannelNorm),
            mask_predictor=MaskRCNNPredictor(c.channels, c.channels, classes),
        )
        self._initialise()

    def _initialise(self) -> None:
        """Begin as detectron2 does, where torchvision does not."""
        for layer in self.regions.box_head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
        predictor, masks = self.regions.box_predictor, self.regions.mask_predictor
        nn.init.normal_(predictor.cls_score.weight, std=0.01)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
        nn.init.normal_(masks.mask_fcn_logits.weight, std=0.001)
        for name, parameter in self.regions.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        maps: dict[str, Tensor],
        sizes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """Return (objects, {}) in evaluation, ([], losses) in training.

        maps: from p2 to p6, each (B, channels, h, w). sizes: heights and widths of what the images
        hold; the rest of them fills them up. targets: of the images; needed in training.
        """
        proposals, rpn_losses = self.rpn(maps, sizes, targets)
        found, losses = self.regions(maps, proposals, sizes, targets)
        return found, {**rpn_losses, **losses}


def _by_operator(maps: Tensor, regions: Tensor, size: int, scale: float) -> Tensor:
    """As `pooled`, by torchvision's operator, which adds up gradients in any order."""
    if torch.are_deterministic_algorithms_enabled():
        return pooled(maps, regions, size, scale)
    return roi_align(maps, regions, size, scale, sampling_ratio=-1, aligned=True)


class _Anchors(AnchorGenerator):
    """Anchors in float32, in any precision of the network, whose strides do not depend on how sizes
    of maps were rounded."""

    def __init__(self, size: int, levels: int, stride: float) -> None:
        super().__init__(tuple((size << level,) for level in range(levels)), (_TALLNESS,) * levels)
        self.strides = [[stride * 2**level] * 2 for level in range(levels)]

    def all_of(self, maps: list[Tensor]) -> Tensor:
        """Return the anchors of an image with these maps, in their order: (A, 4), pixels."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        return torch.cat(self.grid_anchors([list(x.shape[-2:]) for x in maps], self.strides))


class _ProposalHead(RPNHead):
    """Its results are float32: a box has more digits than bfloat16."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [scores.float() for scores in objectness], [shifts.float() for shifts in deltas]


class _Proposals(RegionProposalNetwork):
    def forward(
        self,
        maps: dict[str, Tensor],
        sizes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return proposals, of each image (K_i, 4) with K_i > 0, and in training the losses.
        Arguments as for `MaskRCNN.forward`."""
        levels = list(maps.values())
        of_levels = self.head(levels)
        counts = [scores[0].numel() for scores in of_levels[0]]
        anchors = [self.anchor_generator.all_of(levels)] * len(sizes)
        objectness, deltas = concat_box_prediction_layers(*of_levels)
        boxes = self.box_coder.decode(deltas.detach(), anchors).view(len(sizes), -1, 4)
        proposals, _ = self.filter_proposals(boxes, objectness, sizes, counts)
        for index, (height, width) in enumerate(sizes):
            if not len(proposals[index]):
                proposals[index] = boxes.new_tensor([[0, 0, width, height]])
        if not self.training:
            return proposals, {}
        assert targets is not None
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        wanted = self.box_coder.encode(matched, anchors)
        return proposals, self._losses(objectness.flatten(), deltas, labels, torch.cat(wanted))

    def _losses(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], wanted: Tensor
    ) -> dict[str, Tensor]:
        """Return the binary cross-entropy and the L1 distance of sampled anchors, over the number
        of samples that are asked for. objectness: (A,) of all images. deltas, wanted: (A, 4)."""
        positive, negative = (torch.cat(chosen) > 0 for chosen in self.fg_bg_sampler(labels))
        counted = positive | negative
        scores = F.binary_cross_entropy_with_logits(
            objectness[counted], torch.cat(labels)[counted], reduction="sum"
        )
        boxes = F.l1_loss(deltas[positive], wanted[positive], reduction="sum")
        count = self.fg_bg_sampler.batch_size_per_image * len(labels)
        return {"objectness": scores / count, "proposals": boxes / count}


class _Regions(RoIHeads):
    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """As `MaskRCNN.forward`. proposals: of each image, (K_i, 4)."""
        if not self.training:
            scores, deltas = self._classify(features, proposals)
            found = self.postprocess_detections(scores, deltas, proposals, image_shapes)
            return self._with_masks(features, *found), {}
        assert targets is not None
        proposals, matched, labels, deltas_wanted = self.select_training_samples(proposals, targets)
        scores, deltas = self._classify(features, proposals)
        losses = _box_losses(scores, deltas, torch.cat(labels), torch.cat(deltas_wanted))
        losses["masks"] = self._mask_loss(features, proposals, matched, labels, targets)
        return [], losses

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return (scores of classes (K, C), shifts of boxes (K, C * 4)), float32."""
        scores, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals)))
        return scores.float(), deltas.float()

    def _mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Return logits of pixels within boxes, (K, C, 28, 28) float32."""
        pooled = self.mask_roi_pool(features, boxes)
        return self.mask_predictor(self.mask_head(pooled)).float()

    def _with_masks(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        scores: list[Tensor],
        labels: list[Tensor],
    ) -> list[Found]:
        logits = self._mask_logits(features, boxes)
        of_classes = torch.cat(labels)
        masks = logits[torch.arange(len(logits), device=logits.device), of_classes].sigmoid()
        of_images = masks.split([len(box) for box in boxes])  # type: ignore[no-untyped-call]
        return [Found(*parts) for parts in zip(boxes, labels, scores, of_images, strict=True)]

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[Target],
    ) -> Tensor:
        """Return the binary cross-entropy of the masks of regions that hold an object, each for its
        own class."""
        holding = [of_image > 0 for of_image in labels]
        counts = any(bool(of_image.any()) for of_image in holding)
        if not counts:  # the first region of the first image stands in
            holding[0] = torch.arange(len(labels[0]), device=labels[0].device) == 0
        boxes = [box[at] for box, at in zip(proposals, holding, strict=True)]
        of_classes = torch.cat([label[at] for label, at in zip(labels, holding, strict=True)])
        logits = self._mask_logits(features, boxes)
        logits = logits[torch.arange(len(logits), device=logits.device), of_classes]
        if not counts:
            return logits.sum() * 0
        wanted = [
            self._cropped(target["masks"], torch.cat([index[at, None].to(box), box], 1))
            for target, index, at, box in zip(targets, matched, holding, boxes, strict=True)
            if len(box)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))

    def _cropped(self, masks: Tensor, regions: Tensor) -> Tensor:
        """Return the masks within regions, (K, 28, 28), of zeros and ones. masks: (N, H, W) bool.
        regions: (K, 5), the number of a mask first."""
        crops = self.mask_roi_pool.pooling(masks[:, None].float(), regions, 2 * _MASK_CELLS, 1.0)
        return (crops[:, 0] >= 0.5).to(regions.dtype)


def _box_losses(
    scores: Tensor, deltas: Tensor, labels: Tensor, deltas_wanted: Tensor
) -> dict[str, Tensor]:
    """scores: (K, C). deltas: (K, C * 4). labels: (K,), 0 for the background. deltas_wanted:
    (K, 4)."""
    holding = (labels > 0).nonzero().flatten()
    of_class = deltas.view(len(labels), -1, 4)[holding, labels[holding]]
    return {
        "classes": F.cross_entropy(scores, labels),
        "boxes": F.l1_loss(of_class, deltas_wanted[holding], reduction="sum") / len(labels),
    }
