"""The rows that are printed: stages beside what bounds them, and one variant beside another."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.step.rates import Rates
from benchmarks.step.work import Work
from trainer import costs
from trainer.config.schema import RunConfig

Repeats = list[dict[str, float]]  # of each repeat, the mean seconds of each stage


def medians(repeats: Repeats) -> dict[str, float]:
    """Return the median seconds of each stage."""
    return {stage: statistics.median(row[stage] for row in repeats) for stage in repeats[0]}


def stage_rows(
    repeats: Repeats, work: dict[str, Work], rates: Rates, config: RunConfig
) -> list[dict[str, Any]]:
    """Return a row for each stage, for the step, and for the step by the host's clock.

    The rate of a step counts the operations that a step of ours needs (`trainer.costs`), whatever
    else the variant does.
    """
    seconds, micro, rows = medians(repeats), config.batch.micro, []
    needed = costs.image_operations(config).total * micro
    for stage, taken in seconds.items():
        row: dict[str, Any] = {"stage": stage, "ms": round(taken * 1e3, 3)}
        whole = stage in ("step", "wall", "cpu")
        if not whole:
            row["of_step"] = round(taken / seconds["step"], 3)
        own = work.get(stage, Work())
        operations = needed if whole else own.operations
        if operations and stage not in ("cpu", "rest"):
            rate = operations / taken
            row |= {
                "gflop_per_image": round(operations / micro / 1e9, 3),
                "tflops": round(rate / 1e12, 4),
                "of_product": round(rate / rates.product, 3),
                "of_data_sheet": round(rate / rates.sheet, 3) if rates.sheet else None,
            }
        if whole:
            row["images_per_second"] = round(micro / taken, 3)
        elif stage != "rest":
            row |= {
                "mb_per_image": round(own.bytes / micro / 1e6, 1),
                "flop_per_byte": round(own.operations / own.bytes, 1),
                "least_ms": round(own.least * 1e3, 3),
                "bound_by": own.bound(taken),
            }
        rows.append(row)
    return rows


def ratio_rows(ours: Repeats, reference: Repeats) -> list[dict[str, Any]]:
    """Return how many times as long as ours a step of the reference takes, with and without the
    tokenisation of its images: of each repeat, the median and the range."""
    rows = []
    for clock in ("wall", "cpu"):
        pairs = list(zip(ours, reference, strict=True))
        ratios = {
            "reference": [theirs[clock] / own[clock] for own, theirs in pairs],
            # Stages are timed by one clock only; the share of the step is taken to be the same.
            "reference without tokenisation": [
                theirs[clock] * (1 - theirs["tokenisation"] / theirs["step"]) / own[clock]
                for own, theirs in pairs
            ],
        }
        rows += [
            {
                "ratio_of": name,
                "by": clock,
                "median": round(statistics.median(values), 3),
                "range": [round(min(values), 3), round(max(values), 3)],
            }
            for name, values in ratios.items()
        ]
    return rows
