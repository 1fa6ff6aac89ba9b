"""How the views of images are made: what `views.py` is told, and a data set's fingerprint holds.
Imports neither numpy nor Pillow, so that a configuration is read without them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import LARGEST_IMAGE
from model.documents import Seed, Settings

MOST_VIEWS = 1000  # of an image; they are in memory together

_Share = Annotated[float, Field(gt=0, le=1)]
_Ratio = Annotated[float, Field(ge=0.01, le=100)]


class ViewRecipe(Settings):
    """How views are made. It is part of a data set's fingerprint."""

    kind: Literal["random_crop", "center_crop"] = Field(
        "random_crop", description="random_crop, or center_crop for evaluation"
    )
    size: int = Field(256, gt=0, le=LARGEST_IMAGE, description="side of a view, pixels")
    views: int = Field(
        10, gt=0, le=MOST_VIEWS, description="V, views of each image; center_crop has one"
    )
    scale: tuple[_Share, _Share] = Field(
        (0.2, 1.0), description="share of the image's area in a random crop"
    )
    ratio: tuple[_Ratio, _Ratio] = Field(
        (3 / 4, 4 / 3), description="aspect ratio of a random crop"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    seed: Seed = Field(0, description="seed of the crops and flips")

    @model_validator(mode="after")
    def _ordered(self) -> ViewRecipe:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name} = {low}, {high}: the lower end comes first")
        return self

    @classmethod
    def center(cls, size: int) -> ViewRecipe:
        """Return the recipe of one centre crop."""
        return cls(kind="center_crop", size=size, views=1)
