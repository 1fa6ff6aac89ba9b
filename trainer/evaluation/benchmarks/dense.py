"""Dense transfer: how well pixels are labelled, and how well objects are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from model.errors import ConfigError
from trainer.evaluation.benchmarks.base import UP, Benchmark, ImageTitle, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.options import EvaluationOptions
    from trainer.evaluation.task import Task

_IMAGES: dict[str, Metric] = {
    "images": Metric("images that were read", plotted=False),
    "unread": Metric("images that could not be read", plotted=False),
}


def _share(title: str, plotted: bool = True) -> Metric:
    return Metric(title, UP, "%", plotted=plotted)


class Segmentation(Benchmark):
    """Mean intersection over union and pixel accuracy of a segmenter, with windows that slide over
    the images, and on whole images."""

    title = "Segmentation"
    summary = "mIoU and pixel accuracy of a segmenter"
    network_kinds = ("segmenter",)
    options = ("ade20k", "split", "short_side", "long_side", "window", "window_stride")
    metrics: ClassVar = {
        "miou": _share("mean IoU"),
        "pixel_accuracy": _share("pixel accuracy"),
        "mean_accuracy": _share("mean accuracy of classes", plotted=False),
        "iou": _share("IoU"),
        "whole_iou": _share("IoU, whole images"),
        "accuracy": _share("accuracy"),
        "pixels": Metric("pixels"),
        **_IMAGES,
    }
    variants: ClassVar = {"whole_": "whole images in one pass"}
    images: ClassVar = {
        "predictions": ImageTitle(
            "Segmentation", "From left: the image, its annotation, and what the network says."
        )
    }

    def check(self, options: EvaluationOptions) -> None:
        if options.split not in ("train", "val"):
            raise ConfigError(f"--split {options.split}: segmentation has the splits train and val")

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.segmentation import measure

        return measure(task)


def _precisions(kind: str) -> dict[str, Metric]:
    """kind: box or mask."""
    names = {
        "ap": f"{kind} AP",
        "ap50": f"{kind} AP50",
        "ap75": f"{kind} AP75",
        "ap_small": f"{kind} AP, small",
        "ap_medium": f"{kind} AP, medium",
        "ap_large": f"{kind} AP, large",
    }
    drawn = ("ap", "ap50")
    return {f"{kind}_{name}": _share(title, name in drawn) for name, title in names.items()}


class Detection(Benchmark):
    """COCO's average precision of a detector's boxes and masks, by pycocotools."""

    title = "Detection"
    summary = "box and mask AP of a detector"
    network_kinds = ("detector",)
    options = ("coco", "split")
    metrics: ClassVar = {
        **_precisions("box"),
        **_precisions("mask"),
        "objects": Metric("annotated objects", plotted=False),
        **_IMAGES,
    }
    images: ClassVar = {
        "predictions": ImageTitle(
            "Detection",
            "From left: the image, its annotations, and what the network finds: its surest "
            "objects, as many as are annotated.",
        )
    }

    def check(self, options: EvaluationOptions) -> None:
        from data_pipeline.annotations.pycoco import mask_api

        mask_api()  # now, and not once everything is computed

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.detection import measure

        return measure(task)
