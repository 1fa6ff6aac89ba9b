"""The metrics of single classes on a report: a table for each benchmark that has them. Imports no
torch."""

from __future__ import annotations

from typing import NamedTuple

from trainer.evaluation.reporting.metrics import MetricName, Value
from trainer.evaluation.reporting.records import ReportedResult, RunRecord


class ClassTable(NamedTuple):
    """The newest metrics of a benchmark by class.

    columns: the metrics. rows: (class, its value in each column), by the class's name.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Value | None]]]


def class_tables(runs: list[RunRecord]) -> list[ClassTable]:
    """Make a table of each run's newest result of each benchmark that measures classes."""
    tables = []
    for run in runs:
        newest: dict[tuple[str, str], ReportedResult] = {}
        for result in run.results:  # by step, so that the newest stays
            if result.classes:
                newest[result.benchmark, result.weights] = result
        whose = f"{run.name}: " if len(runs) > 1 else ""
        tables += [_table(whose, result) for _, result in sorted(newest.items())]
    return tables


def _table(whose: str, result: ReportedResult) -> ClassTable:
    # In the order in which the benchmark gives them.
    keys = list(dict.fromkeys(key for of_class in result.classes.values() for key in of_class))
    names = [MetricName(result.benchmark, key, "") for key in keys]
    rows = []
    for label, of_class in sorted(result.classes.items()):
        values: list[Value | None] = []
        for key, name in zip(keys, names, strict=True):
            share = name.metric.unit == "%"
            value = of_class.get(key)
            scaled = None if value is None else value * (100 if share else 1)
            values.append(None if scaled is None else Value(result.step, scaled, share))
        rows.append((label, values))
    ema = " of the EMA" if result.weights == "ema" else ""
    title = f"{whose}{names[0].benchmark_title}{ema} by class, step {result.step:,}"
    return ClassTable(title, [name.label for name in names], rows)
