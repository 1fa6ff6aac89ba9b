"""How often a classifier is right on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import IMAGES, UP, Benchmark, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.task import Task


class Accuracy(Benchmark):
    """Top-1 and top-5 of a classifier, on centre crops."""

    title = "Classifier"
    summary = "top-1 and top-5 of a classifier"
    network_kinds = ("classifier",)
    options = IMAGES
    metrics: ClassVar = {
        "top1": Metric("top-1 accuracy", UP, "%", counted_by="images"),
        "top5": Metric("top-5 accuracy", UP, "%", counted_by="images"),
        "images": Metric("images that were classified", plotted=False),
    }

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.recognition import classifier_accuracy

        return Outcome(classifier_accuracy(task))
