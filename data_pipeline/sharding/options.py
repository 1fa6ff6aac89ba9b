"""The options of making token shards: one model for the plan, one for a job.

A field's default, bounds and description stand here and nowhere else: the command lines are derived
from these models. Imports neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipeline.images.split import Split
from data_pipeline.images.view_recipe import MOST_VIEWS, ViewRecipe
from data_pipeline.shards import MOST_ROWS
from model.documents import Settings
from model.precision import InferencePrecision

OnBad = Literal["quarantine", "fail"]
BAD_LIMIT = 0.01  # share of the images that may be unreadable, unless a user says otherwise


class PlanOptions(Settings):
    """Which images of a source are planned, how their views are made, and what a shard holds."""

    split: Split = Field(
        "all", description="which images; train: all but the held-out ones, val: those"
    )
    held_out: float = Field(
        0.1, ge=0, le=1, description="share of held-out images, fixed by the hash of their names"
    )
    views: int = Field(10, ge=1, le=MOST_VIEWS, description="V, augmented views of each image")
    center: bool = Field(False, description="one centre crop an image, for evaluation")
    min_scale: float = Field(
        0.2, ge=0.001, le=1, description="smallest share of an image's area in a random crop"
    )
    rows: int = Field(1024, ge=1, le=MOST_ROWS, description="images a shard")
    precision: InferencePrecision = Field("fp32", description="of the encoder's convolutions")
    class_names: Path | None = Field(
        None, description="file with a class on each line: name, title"
    )
    labels: Path | None = Field(
        None, description="file with each image's class, for a validation tar"
    )
    devkit: Path | None = Field(
        None,
        description="ImageNet's devkit (ILSVRC2012_devkit_t12.tar.gz): class titles, val labels",
    )
    seed: int = Field(
        0, ge=-(1 << 63), le=(1 << 63) - 1, description="seed of the shuffle and of the views"
    )

    def view_recipe(self, size: int) -> ViewRecipe:
        """Return the recipe of views of `size` pixels. Raises pydantic's ValidationError."""
        if self.center:
            return ViewRecipe.center(size)
        return ViewRecipe(size=size, views=self.views, scale=(self.min_scale, 1.0), seed=self.seed)


class JobOptions(Settings):
    """How a worker makes shards. The bytes of a shard do not depend on it, but for the rounding of
    the device."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where there is one"
    )
    batch: int = Field(128, ge=1, le=65_536, description="views encoded at once")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads that read and decode images; else one for each core",
    )
    compile: bool = Field(False, description="torch.compile the encoder")
    on_bad_image: OnBad = Field(
        "quarantine", description="list an unreadable image and go on, or stop at the first"
    )
    bad_limit: float = Field(
        BAD_LIMIT, ge=0, le=1, description="share of unreadable images above which the job stops"
    )
