"""Whether images are known again: altered copies among all held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import IMAGES, UP, Benchmark, ImageTitle, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.task import Task


def _share(title: str) -> Metric:
    return Metric(title, UP, "%", counted_by="images")


class Retrieval(Benchmark):
    """A copy of each held-out image is turned, moved and recoloured, and is to find its original
    among all of them, by the cosine of frozen features. No label is used."""

    title = "Retrieval"
    detail = "of the originals of altered images"
    summary = "altered images find their originals, by frozen features"
    network_kinds = ("addp",)
    options = (*IMAGES, "seed", "baselines")
    metrics: ClassVar = {
        "top1": _share("the original is the nearest"),
        "top5": _share("the original is among the five nearest"),
        "mean_top1": _share("by the mean of the patches, the nearest"),
        "mean_top5": _share("by the mean of the patches, among the five nearest"),
        "images": Metric("images that were searched", plotted=False),
    }
    variants: ClassVar = {
        "untrained_": "untrained encoder",
        "pixels_": "raw pixels",
        "colour_": "mean colour",
    }
    images: ClassVar = {
        "nearest": ImageTitle(
            "Retrieval",
            "Held-out images that were turned, moved and recoloured, spread evenly and not chosen. "
            "After each, the five originals nearest to it by the encoder's features and, on the "
            "right where pixels were measured, the five nearest by raw pixels. A frame marks the "
            "image that it was made of.",
        )
    }

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.retrieval import measure

        return measure(task)
