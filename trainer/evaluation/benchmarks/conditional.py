"""Whether samples of a conditional network show the classes that it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from model.errors import ConfigError
from trainer.evaluation.benchmarks.base import IMAGES, SAMPLES, UP, Benchmark, Metric, Outcome

if TYPE_CHECKING:
    from trainer.config.schema import RunConfig
    from trainer.evaluation.options import EvaluationOptions
    from trainer.evaluation.task import Task


class Conditional(Benchmark):
    """Top-1 of a classifier of real images on samples, against the classes that they were asked to
    be of; beside it, on held-out real images."""

    title = "Samples of classes"
    detail = "by a classifier of real images (EfficientNet features)"
    summary = "how often a classifier of real images recognises the class of a sample"
    network_kinds = ("addp",)
    options = (*SAMPLES, *IMAGES)
    uses_tokenizer = True
    metrics: ClassVar = {
        "recognised": Metric("samples recognised", UP, "%", counted_by="samples"),
        "real": Metric("held-out images recognised", "", "%", False, counted_by="images"),
        "chance": Metric("the most common class of the samples", "", "%", plotted=False),
        "samples": Metric("samples that were classified", plotted=False),
        "images": Metric("held-out images that were classified", plotted=False),
    }

    def check(self, options: EvaluationOptions) -> None:
        if not options.class_guidance:
            raise ConfigError(
                "conditional measures samples of classes, and with --class-guidance 0 they have "
                "none; give a weight above 0"
            )

    def check_run(self, config: RunConfig) -> None:
        if config.condition != "classes":
            raise ConfigError(
                "conditional measures samples of classes, and this run knows none; it needs a run "
                "with condition=classes (docs/generation.md)"
            )

    def run(self, task: Task) -> Outcome:
        from trainer.evaluation.measures.conditional import recognised_samples

        return Outcome(recognised_samples(task))
