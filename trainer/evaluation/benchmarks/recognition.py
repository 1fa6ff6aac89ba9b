"""What an encoder's frozen features are worth: nearest neighbours, and a linear probe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import IMAGES, UP, Benchmark, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.task import Task

_SPACE = "\N{NO-BREAK SPACE}"
_TOP1 = Metric("top-1 accuracy", UP, "%", counted_by="images")
_NEIGHBOURS = re.compile(r"top1_k(\d+)")


class _Probe(Benchmark):
    """A classifier on the mean of the patch tokens of the trained encoder; with `baselines` also on
    an untrained encoder's, and on raw pixels."""

    detail = "on frozen features"
    network_kinds = ("addp",)
    options = (*IMAGES, "baselines")
    metrics: ClassVar = {
        "top1": _TOP1,
        "majority_class": Metric("the most common class", unit="%", plotted=False),
        "images": Metric("images that were classified", plotted=False),
    }
    variants: ClassVar = {"untrained_": "untrained encoder", "pixels_": "raw pixels"}


class KNN(_Probe):
    """Top-1 of a weighted vote of the k nearest training images."""

    title = "Nearest neighbours"
    summary = "a vote of the nearest training images, on frozen features"

    def metric(self, name: str) -> Metric:
        if match := _NEIGHBOURS.fullmatch(name):
            return _TOP1._replace(title=f"{_TOP1.title}, k{_SPACE}={_SPACE}{match[1]}")
        return super().metric(name)

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.neighbours import knn
        from trainer.evaluation.measures.recognition import probe

        return Outcome(probe(task, knn))


class LinearProbe(_Probe):
    """Top-1 of logistic regression."""

    title = "Linear probe"
    summary = "logistic regression on frozen features"

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.linear_probe import linear
        from trainer.evaluation.measures.recognition import probe

        return Outcome(probe(task, linear))
