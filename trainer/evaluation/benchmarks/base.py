"""What a benchmark is: what it measures, on which runs, from which options, and how people read it.

A benchmark is one file beside this one and one line in `registry`. Evaluator, command line and
report take everything from there. The report runs where there is no torch, so a benchmark's file
imports what it computes with in `run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from model.sampling_options import SamplingOptions
from trainer.evaluation.measures.intervals import OVER
from trainer.evaluation.options import EvaluationOptions, MeasuredSamples, names_of

if TYPE_CHECKING:
    from trainer.config.schema import RunConfig
    from trainer.evaluation.task import Task

UP, DOWN = "↑", "↓"
SPLIT = ("train_images", "held_out")  # the options that say which images are held out
IMAGES = ("images", *SPLIT)
TOKENS = ("tokens", "train_tokens")
SAMPLES = names_of(MeasuredSamples, SamplingOptions)


class Metric(NamedTuple):
    """How people read a number of a result.

    better: `UP` or `DOWN`, the way that is better, or nothing. unit: "%" marks a share between 0
    and 1, which is shown in percent. plotted: whether it is drawn against the step. counted_by: the
    metric that says how many images a share is of, from which its interval follows.
    """

    title: str
    better: str = ""
    unit: str = ""
    plotted: bool = True
    counted_by: str = ""


class ImageTitle(NamedTuple):
    """How the report presents an image of a result.

    over_time: whether it shows the images of several checkpoints, or the newest alone. beside: the
    name of an image that is shown next to them, and its caption.
    """

    title: str
    note: str
    over_time: bool = False
    beside: tuple[str, str] | None = None


class Outcome(NamedTuple):
    """What a benchmark found: metrics by name, and PNGs by name. Only rank 0's counts."""

    metrics: dict[str, Any]
    images: dict[str, bytes] = {}  # noqa: RUF012 - never changed


class Benchmark(ABC):
    """One way to measure a checkpoint.

    title, detail: the heading of its metrics; plots take the title alone.
    summary: what it measures, for `--help`.
    network_kinds: the kinds of networks that it measures.
    options: the names of the evaluation options that its result depends on; those that name data
    count by content.
    uses_tokenizer: whether it needs the tokenizer of an ADDP run.
    metrics, images: how people read what it finds.
    variants: what else the same metrics are measured on, by the prefix of their names.
    """

    title: ClassVar[str]
    detail: ClassVar[str] = ""
    summary: ClassVar[str]
    network_kinds: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    uses_tokenizer: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]] = {}
    images: ClassVar[Mapping[str, ImageTitle]] = {}
    variants: ClassVar[Mapping[str, str]] = {}

    def check(self, options: EvaluationOptions) -> None:  # noqa: B027 - most refuse nothing
        """Refuse options that it cannot run with, before anything is computed. Raises
        ConfigError."""

    def check_run(self, config: RunConfig) -> None:  # noqa: B027 - most refuse nothing
        """Refuse a run whose network is of the right kind and yet cannot be measured, before
        anything is computed. Raises ConfigError."""

    def depends_on(self, options: EvaluationOptions) -> tuple[str, ...]:
        """The names of the options that its result depends on, given their values."""
        return self.options

    def metric(self, name: str) -> Metric:
        """How to read a metric, whose name has no variant's prefix; also how far one is ahead of a
        variant's."""
        of, over, other = name.partition(OVER)
        if over and (variant := self.variants.get(f"{other}_")):
            metric = self.metric(of)
            title = f"{metric.title}, ahead of {variant}"
            return metric._replace(title=title, plotted=False, counted_by="")
        return self.metrics.get(name) or Metric(name.replace("_", " "))

    @abstractmethod
    def run(self, task: Task) -> Outcome:
        """Measure a checkpoint, on all ranks together. Raises ADDPError."""
