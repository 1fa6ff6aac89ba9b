"""The metrics of evaluations on a report: what they are called, and how far they can be trusted.

Names, units and directions come from the benchmarks. Imports no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from trainer.evaluation.benchmarks.base import Metric
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.measures.intervals import ENDS, Interval, share_interval
from trainer.evaluation.reporting.records import ReportedResult, RunRecord

_OF_ANOTHER = ("_std", *ENDS)  # ends of names of what belongs to another metric
_SPACE = "\N{NO-BREAK SPACE}"


class MetricName(NamedTuple):
    """The name of a metric in results, taken apart.

    variant: the prefix that says what else it was measured on. base: the name without it.
    """

    benchmark: str
    base: str
    variant: str

    @property
    def metric(self) -> Metric:
        """How people read it. What no benchmark of this version knows is called by its name."""
        known = BENCHMARKS.get(self.benchmark)
        return known.metric(self.base) if known else Metric(self.base.replace("_", " "))

    @property
    def order(self) -> tuple[object, ...]:
        """Benchmarks as the registry has them, numbers in names as numbers, variants after the
        metric itself."""
        names = list(BENCHMARKS)
        pieces = re.split(r"(\d+)", self.base)
        natural = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]
        known = self.benchmark in BENCHMARKS
        return (
            names.index(self.benchmark) if known else len(names),
            self.benchmark,
            not self.metric.plotted,
            natural,
            ["", *_variants(self.benchmark)].index(self.variant),
        )

    @property
    def benchmark_title(self) -> str:
        """The title of its benchmark."""
        known = BENCHMARKS.get(self.benchmark)
        return known.title if known else self.benchmark

    @property
    def title(self) -> str:
        """The title of a plot."""
        metric = self.metric
        unit = f", {metric.unit}" if metric.unit else ""
        return f"{self.benchmark_title}: {metric.title}{unit}{_SPACE}{metric.better}".rstrip()

    @property
    def label(self) -> str:
        """The label of a row, below the heading of its benchmark. Values in percent say so
        themselves."""
        metric = self.metric
        unit = f", {metric.unit}" if metric.unit and metric.unit != "%" else ""
        variant = f", {_variants(self.benchmark)[self.variant]}" if self.variant else ""
        return f"{metric.title}{unit}{variant}{_SPACE}{metric.better}".rstrip()


def _variants(benchmark: str) -> dict[str, str]:
    return dict(BENCHMARKS[benchmark].variants) if benchmark in BENCHMARKS else {}


def _heading(benchmark: str) -> str:
    known = BENCHMARKS.get(benchmark)
    return f"{known.title} {known.detail}".strip() if known else benchmark


class Value(NamedTuple):
    """The value of a metric at a step.

    interval: the ends of its 95 % interval, and spread: the standard deviation that its formula
    gives; None where they are not known. All that belongs to a share is in percent.
    """

    step: int
    value: float
    is_share: bool
    interval: Interval | None = None
    spread: float | None = None

    def __str__(self) -> str:
        if self.is_share:
            ends = f" [{self.interval.low:.1f}, {self.interval.high:.1f}]" if self.interval else ""
            return f"{self.value:.1f}{_SPACE}%{ends}"
        if self.value.is_integer() and abs(self.value) < 1e9:
            return f"{self.value:,.0f}"
        return f"{self.value:.4g}" + (f" ± {self.spread:.2g}" if self.spread is not None else "")

    @property
    def bar(self) -> Interval | None:
        """What a plot draws around it: its interval, or its spread each way."""
        if self.spread is None:
            return self.interval
        return Interval(self.value - self.spread, self.value + self.spread)


def _interval(metrics: dict[str, float], name: str, counted_by: str) -> Interval | None:
    """The interval that a result states; else that of a share whose images are counted, as in
    results of earlier versions."""
    low, high = (metrics.get(name + end) for end in ENDS)
    if low is not None and high is not None:
        return Interval(low, high)
    count, share = metrics.get(counted_by, 0), metrics[name]
    return share_interval(share, count) if count >= 1 and 0 <= share <= 1 else None


def metrics_of(result: ReportedResult) -> list[tuple[MetricName, Value]]:
    """Read the metrics of a result.

    What it states of the spread (NAME_std) or of the interval (NAME_low, NAME_high) of a metric
    belongs to that metric, and is none of its own.
    """
    metrics, variants = result.metrics, _variants(result.benchmark)
    values = []
    for name, value in metrics.items():
        if any(name.endswith(end) and name.removesuffix(end) in metrics for end in _OF_ANOTHER):
            continue
        variant = next((prefix for prefix in variants if name.startswith(prefix)), "")
        named = MetricName(result.benchmark, name.removeprefix(variant), variant)
        metric = named.metric
        is_share = metric.unit == "%"
        scale = 100 if is_share else 1
        ends, spread = _interval(metrics, name, metric.counted_by), metrics.get(f"{name}_std")
        interval = Interval(*(scale * end for end in ends)) if ends else None
        spread = None if spread is None else scale * abs(spread)
        values.append((named, Value(result.step, value * scale, is_share, interval, spread)))
    return values


class Series(NamedTuple):
    """A line of a plot.

    run: its index on the page. variant: 0 for the checkpoint itself, else the number of what was
    measured among the variants of the benchmark. ema: whether the EMA of the weights was measured.
    """

    label: str
    run: int
    variant: int
    ema: bool
    values: list[Value]


def series_of(runs: list[RunRecord]) -> list[tuple[MetricName, list[Series]]]:
    """Collect the metrics that several checkpoints have.

    What a metric is compared with (an untrained encoder, raw pixels, the EMA of the weights, other
    runs) comes with it.
    """
    plots: dict[MetricName, dict[tuple[int, str, bool], list[Value]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for index, run in enumerate(runs):
        for result in run.results:
            for name, value in metrics_of(result):
                if name.metric.plotted:
                    line = (index, name.variant, result.weights == "ema")
                    plots[name._replace(variant="")][line].append(value)
    series = []
    for name in sorted(plots, key=lambda name: name.order):
        variants = _variants(name.benchmark)
        lines = [
            Series(
                _label(runs[index], variants.get(variant, ""), ema),
                index,
                ["", *variants].index(variant),
                ema,
                values,
            )
            for (index, variant, ema), values in plots[name].items()
        ]
        if any(len(line.values) > 1 for line in lines):
            series.append((name, lines))
    return series


def _label(run: RunRecord, variant: str, ema: bool) -> str:
    return ", ".join(filter(None, (run.name, "EMA" if ema else "", variant)))


class Table(NamedTuple):
    """Metrics of several runs side by side.

    columns: runs, with a column of its own for the EMA of the weights. benchmarks: (heading, rows);
    a row is (metric, its value in each column).
    """

    columns: list[str]
    benchmarks: list[tuple[str, list[tuple[str, list[Value | None]]]]]

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(len(rows) for _, rows in self.benchmarks)


def newest_metrics(runs: list[RunRecord]) -> Table:
    """Take the newest value of each metric in each run: it is what compares runs."""
    newest: dict[MetricName, dict[tuple[int, bool], Value]] = defaultdict(dict)
    for index, run in enumerate(runs):
        for result in run.results:  # by step, so that the newest stays
            for name, value in metrics_of(result):
                newest[name][index, result.weights == "ema"] = value
    columns = sorted({column for row in newest.values() for column in row})
    benchmarks: dict[str, list[tuple[str, list[Value | None]]]] = defaultdict(list)
    for name in sorted(newest, key=lambda name: name.order):
        row = [newest[name].get(column) for column in columns]
        benchmarks[_heading(name.benchmark)].append((name.label, row))
    return Table([_label(runs[index], "", ema) for index, ema in columns], list(benchmarks.items()))
