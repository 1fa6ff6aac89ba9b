"""Sizes of the networks of dense transfer, as published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model.config import LARGEST_IMAGE, WIDEST, TransformerConfig
from model.documents import Settings

_Block = Annotated[int, Field(ge=0, lt=256)]
_Class = Annotated[str, Field(min_length=1, max_length=200)]
Classes = Annotated[tuple[_Class, ...], Field(min_length=1, max_length=10_000)]


class WindowsConfig(Settings):
    """ViTDet's form of a ViT (arXiv 2203.16527): most blocks attend within windows."""

    size: int = Field(14, gt=0, le=512, description="side of a window, patches")
    global_blocks: tuple[_Block, ...] = Field(
        (2, 5, 8, 11), description="blocks, counted from 0, that attend to the whole image"
    )
    relative_positions: bool = Field(
        True, description="add learned relative positions to the scores, along each axis"
    )
    image_size: int = Field(
        1024,
        gt=0,
        le=LARGEST_IMAGE,
        description="side of the images, pixels, for which global blocks learn relative positions",
    )


class BackboneConfig(Settings):
    """An encoder without the norm after its blocks, as a source of maps."""

    encoder: TransformerConfig = TransformerConfig(dropout=0)
    tokenizer_norm: bool = Field(
        False, description="keep the norm before the blocks, which the reference leaves out"
    )
    layer_scale: bool = Field(
        False, description="scale the branches of each block by learned factors, as DINOv2 does"
    )
    windows: WindowsConfig | None = Field(
        None, description="ViTDet's form; none: a class token, and full attention in all blocks"
    )

    @model_validator(mode="after")
    def _blocks_exist(self) -> BackboneConfig:
        windows, depth = self.windows, self.encoder.depth
        beyond = [block for block in windows.global_blocks if block >= depth] if windows else []
        if beyond:
            raise ValueError(
                f"windows.global_blocks names block {beyond[0]}, but the encoder has {depth}, "
                "counted from 0"
            )
        return self


class SegmenterConfig(Settings):
    """UperNet on a plain ViT (mmsegmentation's `upernet_mae-base`)."""

    backbone: BackboneConfig = BackboneConfig()
    classes: Classes = Field(description="names, in the order of the logits")
    blocks: tuple[_Block, _Block, _Block, _Block] = Field(
        (3, 5, 7, 11),
        description="blocks, counted from 0, whose maps get strides 4, 8, 16 and 32; one may "
        "stand twice",
    )
    channels: int = Field(768, gt=0, le=WIDEST, description="width of UperNet's head")
    auxiliary_channels: int = Field(256, gt=0, le=WIDEST, description="width of the FCN head")
    auxiliary_weight: float = Field(0.4, ge=0, le=1e3, description="weight of the FCN head's loss")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="share of channels that are dropped before a classifier"
    )

    @model_validator(mode="after")
    def _blocks_exist(self) -> SegmenterConfig:
        depth = self.backbone.encoder.depth
        if list(self.blocks) != sorted(self.blocks) or self.blocks[-1] != depth - 1:
            raise ValueError(
                f"blocks must be in ascending order, and end with the encoder's last block, "
                f"{depth - 1}: after it, nothing would be trained"
            )
        return self


class DetectorConfig(Settings):
    """Mask R-CNN on ViTDet's pyramid (detectron2's `mask_rcnn_vitdet`)."""

    backbone: BackboneConfig = BackboneConfig(windows=WindowsConfig())
    classes: Classes = Field(description="names, in the order of the labels, without a background")
    channels: int = Field(256, gt=0, le=WIDEST, description="width of the pyramid and of the heads")
    linear_width: int = Field(1024, gt=0, le=WIDEST, description="of the box head's linear layer")
    anchor_size: int = Field(
        32,
        gt=0,
        le=LARGEST_IMAGE,
        description="side of anchors at stride 4, pixels; it doubles with each stride, and regions "
        "of seven such sides are pooled at stride 16",
    )
    anchors_per_image: int = Field(256, gt=0, le=65_536, description="anchors of the RPN's loss")
    regions_per_image: int = Field(512, gt=0, le=65_536, description="regions of the heads' losses")
    proposals: int = Field(1000, gt=0, le=65_536, description="regions that the RPN proposes")
    score_threshold: float = Field(0.05, ge=0, lt=1, description="a box below it is not returned")
    detections: int = Field(100, gt=0, le=65_536, description="boxes of an image, at most")
