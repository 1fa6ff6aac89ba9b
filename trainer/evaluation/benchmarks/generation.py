"""Samples to look at: a grid, how they come about, and real images beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.evaluation.benchmarks.base import SAMPLES, Benchmark, ImageTitle, Metric, Outcome

if TYPE_CHECKING:
    from trainer.evaluation.task import Task


class Samples(Benchmark):
    """A set of generated images, and grids of the first ones."""

    title = "Samples"
    summary = "a set of generated images, shown as a grid and step by step"
    network_kinds = ("addp",)
    options = SAMPLES
    uses_tokenizer = True
    metrics: ClassVar = {"samples": Metric("samples", plotted=False)}
    images: ClassVar = {
        "": ImageTitle(
            "Samples",
            "Generated from nothing but masked tokens; none was chosen.",
            over_time=True,
            beside=("real", "real images, held out"),
        ),
        "classes": ImageTitle(
            "Samples of each class", "The network was asked for these classes; none was chosen."
        ),
        "steps": ImageTitle(
            "How they come about", "One sample a row, its denoising steps from left to right."
        ),
    }

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.sample_grids import sample_grids

        return Outcome({"samples": task.options.count}, sample_grids(task))
