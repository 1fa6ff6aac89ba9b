"""The options of `evaluate` and `generate`, one model for each concern.

A field's default, bounds and description stand here and nowhere else: the command lines are derived
from these models (`trainer.config.options.from_models`). How images come about, step by step, is
`model.sampling_options`. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from model.config import LARGEST_IMAGE
from model.documents import Settings
from model.precision import InferencePrecision
from model.sampling_options import SamplingOptions
from trainer.config.bounds import YEAR
from trainer.config.options import LARGEST_INFERENCE_BATCH, LARGEST_SEED, LARGEST_STEP, MOST_IMAGES
from trainer.objectives.registry import OBJECTIVES

if TYPE_CHECKING:
    from trainer.config.schema import RunConfig

Container = Literal["png", "webdataset"]
_PRECISION = "precision in which the networks generate"


def _side(meaning: str) -> Any:
    description = f"segmentation: pixels, {meaning}"
    return Field(None, ge=1, le=LARGEST_IMAGE, description=description)


class WhichCheckpoints(Settings):
    """Which checkpoints of a run are measured."""

    follow: bool = Field(False, description="measure each new checkpoint, until the run is done")
    every: int | None = Field(
        None, ge=1, le=LARGEST_STEP, description="measure all checkpoints at multiples of this step"
    )
    checkpoint: int | None = Field(
        None,
        ge=0,
        le=LARGEST_STEP,
        description="measure the checkpoint of this step; else the newest valid one",
    )


class DataOptions(Settings):
    """The data that a checkpoint is measured on."""

    images: str | None = Field(
        None, description="class folders or WebDataset shards; else what the run itself reads"
    )
    train_images: str | None = Field(
        None,
        description="training images, where they stand apart; all of --images is then held out",
    )
    held_out: float | None = Field(
        None, ge=0, le=1, description="share of held-out images, by hash; else the run's"
    )
    reference: Literal["published", "held-out"] = Field(
        "published",
        description="fid, proxy: all of --images, the shorter side resized bilinearly; or the "
        "held-out ones, bicubic",
    )
    tokens: str | None = Field(None, description="held-out: held-out token data set")
    train_tokens: str | None = Field(
        None, description="held-out: training token data set; else what the run itself reads"
    )
    inception_weights: Path | None = Field(
        None, description="fid: Inception-v3, pt_inception-2015-12-05-6726825d.pth"
    )


class AnnotatedOptions(Settings):
    """The annotated images that a segmenter or a detector is measured on, and how it sees them."""

    ade20k: str | None = Field(
        None,
        description="segmentation: data in ADE20k's layout, a folder, a tar, or s3://; else what "
        "the run itself reads",
    )
    coco: str | None = Field(
        None,
        description="detection: data in COCO's layout, a folder, a tar, or s3://; else what the "
        "run itself reads",
    )
    split: str = Field(
        "val",
        min_length=1,
        max_length=100,
        description="of --ade20k, train or val; of --coco, as its files are named: val, val2017",
    )
    short_side: int | None = _side("the shorter side of resized images; else the run's")
    long_side: int | None = _side("the longer side of resized images, at most; else the run's")
    window: int | None = _side("the side of a window; else of the run's crops")
    window_stride: int | None = _side("from one window to the next; else two thirds of a window")


class MeasuredSamples(Settings):
    """The set of images that a checkpoint generates in order to be measured."""

    count: int = Field(
        50_000, ge=2, le=MOST_IMAGES, description="samples, fid, proxy: images to generate"
    )
    seed: int | None = Field(
        None,
        ge=-LARGEST_SEED - 1,
        le=LARGEST_SEED,
        description="image i depends on (seed, i) only; else the run's",
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=LARGEST_INFERENCE_BATCH,
        description="images that are computed together; else the run's micro batch",
    )
    precision: InferencePrecision = Field("fp32", description=_PRECISION)


class ProbeOptions(Settings):
    """What frozen features are compared with."""

    baselines: bool = Field(
        False,
        description="knn, linear, retrieval: measure also an untrained encoder, and raw pixels",
    )


# On the command line the options of the last base come first.
class EvaluationOptions(
    ProbeOptions, SamplingOptions, MeasuredSamples, AnnotatedOptions, DataOptions
):
    """All that results depend on, beside the checkpoint. None means that the run's configuration
    says it."""

    def resolved(self, config: RunConfig) -> tuple[ResolvedOptions, dict[str, Any]]:
        """Take what was not given from the run's configuration.

        Returns the options, and those of their values that came from the configuration.
        """
        of_run: dict[str, Any] = {
            "images": config.data.images,
            "held_out": config.data.held_out,
            "train_tokens": config.data.tokens,
            "seed": config.seed,
            "batch": min(config.batch.micro, LARGEST_INFERENCE_BATCH),
        }
        kind = OBJECTIVES[config.objective].network_kind
        if kind == "segmenter":
            crops = config.segmenter.crops
            of_run |= {
                "ade20k": config.data.images,
                "short_side": crops.short_side,
                "long_side": crops.long_side,
                "window": crops.size,
            }
        elif kind == "detector":
            of_run["coco"] = config.data.images
        taken = {
            name: value
            for name, value in of_run.items()
            if getattr(self, name) is None and value is not None
        }
        return ResolvedOptions.model_validate(self.model_dump() | taken), taken


class ResolvedOptions(EvaluationOptions):
    """The options of an evaluation, with nothing left to the run."""

    held_out: float
    seed: int
    batch: int

    @property
    def sampling(self) -> SamplingOptions:
        """The options of generation alone."""
        return SamplingOptions(**{name: getattr(self, name) for name in names_of(SamplingOptions)})


class WorkOptions(Settings):
    """The folder that an evaluator works in, and how it shares the work with others."""

    work: Path | None = Field(
        None, description="folder for samples and caches; else RUN/evaluation"
    )
    keep_samples: bool = Field(False, description="leave generated sets in the work folder")
    lease: float = Field(
        60, ge=0.1, le=YEAR, description="seconds after which a dead evaluator's work is free"
    )


class SetOptions(Settings):
    """A set of generated images: how many, from which noise, computed and stored how."""

    count: int = Field(64, ge=1, le=MOST_IMAGES, description="how many images")
    seed: int = Field(
        0, ge=-LARGEST_SEED - 1, le=LARGEST_SEED, description="image i depends on (seed, i) only"
    )
    batch: int = Field(
        64, ge=1, le=LARGEST_INFERENCE_BATCH, description="images that are computed together"
    )
    precision: InferencePrecision = Field("fp32", description=_PRECISION)
    container: Container = Field("png", description="with --into: PNG files, or WebDataset tars")


class Output(Settings):
    """The files that generated images are written to."""

    into: Path | None = Field(None, description="make a set of files in this folder, not a grid")
    out: Path | None = Field(
        None, description="PNG file of the grid; if not given, in RUN/samples/, or in samples/"
    )


class EditOptions(Settings):
    """Pictures that are given, and what is generated beside them."""

    complete: Path | None = Field(
        None, description="generate a part of this image anew, or of the first ones in this folder"
    )
    mask: str = Field(
        "right",
        description="with --complete, the part to generate: left, right, top, bottom, center, "
        "border, border:8 (pixels), or a mask of the image's size, white where to generate",
    )
    between: tuple[Path, Path] | None = Field(
        None, description="two images, A and B: generate the frames on the way from A to B"
    )
    frames: int = Field(8, ge=1, le=1000, description="with --between, how many")
    variants: int = Field(
        4,
        ge=1,
        le=LARGEST_INFERENCE_BATCH,
        description="with --complete or --between, how many of each; they take the place of "
        "--count and --batch",
    )

    @property
    def given(self) -> bool:
        """Whether pictures are given at all."""
        return self.complete is not None or self.between is not None


def names_of(*models: type[Settings]) -> tuple[str, ...]:
    """The names of all fields of some models, but for those that stand for other ones."""
    return tuple(
        name for model in models for name, field in model.model_fields.items() if not field.exclude
    )
