"""The plots of a report: what the training loop measured, and the metrics of checkpoints."""

from __future__ import annotations

import math

from trainer.evaluation.reporting.metrics import series_of
from trainer.evaluation.reporting.plots import Line, Plot, plot
from trainer.evaluation.reporting.records import RunRecord
from trainer.objectives.registry import OBJECTIVES

_CURVES = (
    ("loss", "Training loss"),
    ("lr", "Learning rate"),
    ("images_per_second", "Images a second"),
    ("grad_norm", "Gradient norm"),
)
_SMOOTHED = "The training loss is label-smoothed, which the unigram's cross-entropy is not."
_VARIANT_STYLES = ("solid", "dashed", "dotted")


def curves(runs: list[RunRecord]) -> list[Plot]:
    """Plot what the training loop measured; runs with the same objective share a plot."""
    plots = []
    objectives = list(dict.fromkeys(run.objective for run in runs))
    for key, title in _CURVES:
        for objective in objectives:
            chosen = [(index, run) for index, run in enumerate(runs) if run.objective == objective]
            lines = [line for index, run in chosen if (line := _curve(index, run, key)) is not None]
            if not lines:
                continue
            levels = [
                level
                for index, run in chosen
                if key == "loss" and (level := _unigram(index, run, len(chosen))) is not None
            ]
            label = OBJECTIVES[objective].label if objective in OBJECTIVES else objective
            whose = f" ({label})" if len(objectives) > 1 else ""
            plots.append(plot(title + whose, lines, levels, note=_SMOOTHED if levels else ""))
    return plots


def _curve(index: int, run: RunRecord, key: str) -> Line | None:
    rows = [row for row in run.metrics if key in row]
    if not any(math.isfinite(row[key]) for row in rows):
        return None
    steps, values = [row["step"] + 1 for row in rows], [row[key] for row in rows]
    return Line(run.name, index, "solid", steps, values)


def _unigram(index: int, run: RunRecord, runs: int) -> Line | None:
    """What a guess of codes by their frequency would cost, by the run's held-out evaluation."""
    values = [
        result.metrics["unigram"]
        for result in run.results
        if result.benchmark == "held-out" and "unigram" in result.metrics
    ]
    if not values:
        return None
    whose, color = (f"{run.name}, ", index) if runs > 1 else ("", 3)
    return Line(f"{whose}unigram of the held-out codes", color, "dashed", [], values[-1:])


def measured(runs: list[RunRecord]) -> list[Plot]:
    """Plot each metric that several checkpoints have.

    Runs differ in colour; where there is only one, what it is compared with differs in colour.
    """
    plots = []
    for name, series in series_of(runs):
        lines = []
        for index, s in enumerate(series):
            values = [v.value for v in s.values]
            bars = [v.bar for v in s.values]
            style = "fine" if s.ema else _VARIANT_STYLES[s.variant % len(_VARIANT_STYLES)]
            color = s.run if len({other.run for other in series}) > 1 else index
            known = bars if any(bars) else None
            lines.append(
                Line(s.label, color, style, [float(v.step) for v in s.values], values, known)
            )
        note = (
            "Bars: 95 % intervals, by the number of images."
            if name.metric.counted_by
            else "Bars: one standard deviation."
        )
        note = note if any(line.bars for line in lines) else ""
        plots.append(plot(name.title, lines, points=True, note=note))
    return plots
