"""How annotated images are cropped and changed for training, and resized for evaluation. Imports
neither numpy nor Pillow, so that a configuration is read without them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model.config import LARGEST_IMAGE
from model.documents import Settings

_Scale = Annotated[float, Field(ge=0.01, le=100)]
_Side = Annotated[int, Field(gt=0, le=LARGEST_IMAGE)]


def _check_ascending(scale: tuple[float, float]) -> None:
    if scale[0] > scale[1]:
        raise ValueError(f"scale = {scale[0]}, {scale[1]}: the lower end comes first")


class SegmentationRecipe(Settings):
    """Crops for semantic segmentation, as mmsegmentation makes them of ADE20k for MAE
    (`configs/_base_/datasets/ade20k.py`)."""

    size: _Side = Field(512, description="side of a crop, pixels")
    short_side: _Side = Field(
        512, description="of the resized image, pixels, at scale 1 and in evaluation"
    )
    long_side: _Side = Field(2048, description="the most that the longer side may then have")
    scale: tuple[_Scale, _Scale] = Field((0.5, 2.0), description="factor of both sides")
    most_of_one_class: float = Field(
        0.75,
        gt=0,
        le=1,
        description="share of one class above which another crop is tried, up to ten times",
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    photometric: bool = Field(
        True, description="whether brightness, contrast, saturation and hue are changed"
    )

    @model_validator(mode="after")
    def _ordered(self) -> SegmentationRecipe:
        _check_ascending(self.scale)
        if self.long_side < self.short_side:
            raise ValueError(f"long_side = {self.long_side} is less than short_side")
        return self


class DetectionRecipe(Settings):
    """Large-scale jitter for detection, as detectron2's ViTDet makes it of COCO
    (`projects/ViTDet/configs/common/coco_loader_lsj.py`)."""

    size: _Side = Field(1024, description="side of the square that the image is put into, pixels")
    scale: tuple[_Scale, _Scale] = Field(
        (0.1, 2.0), description="longer side of the resized image, in sides of the square"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")

    @model_validator(mode="after")
    def _ordered(self) -> DetectionRecipe:
        _check_ascending(self.scale)
        return self
