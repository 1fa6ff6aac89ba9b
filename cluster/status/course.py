"""What the latest metric lines say of a run's course. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cluster.status import fields
from cluster.status.snapshot import Ettr, Metrics, State

_PACE = 10  # latest lines from which the pace is taken
_LOSSES = 120  # latest lines whose losses are shown
# Seconds without a metric line in which a run is not taken to stand still, and how many times the
# usual pause between two lines that may be.
_PATIENCE, _PAUSES = 60.0, 3.0
# Whatever a run does in these states: it should train, and does not.
STANDING: tuple[State, ...] = (
    "starting",
    "restarting",
    "failed",
    "gave up",
    "incomplete",
    "hung",
    "dead",
)
Rows = Sequence[dict[str, Any]]


def newest_metrics(rows: Rows, now: float) -> Metrics | None:
    """Return what the newest line says; None without a line."""
    if not rows:
        return None
    row = rows[-1]
    written, loss = fields.moment(row), fields.number(row, "loss")
    return Metrics(
        age=None if written is None else max(0.0, now - written),
        loss=loss,
        loss_is_finite=True if loss is not None else False if _is_nan(row) else None,
        losses=[fields.number(row, "loss") for row in rows[-_LOSSES:]],
        learning_rate=fields.number(row, "lr", 0),
        grad_norm=fields.number(row, "grad_norm", 0),
        images_per_second=fields.number(row, "images_per_second", 0),
        seconds_per_step=fields.number(row, "seconds_per_step", 0),
        tflops=fields.number(row, "tflops", 0),
        mfu=fields.number(row, "mfu", 0),
        data_wait=fields.number(row, "data_wait", 0),
        straggler=fields.count(row, "straggler"),
        rank_seconds_p50=fields.number(row, "rank_seconds_p50", 0),
        rank_seconds_p95=fields.number(row, "rank_seconds_p95", 0),
        rank_seconds_max=fields.number(row, "rank_seconds_max", 0),
        memory_gib=fields.number(row, "memory_gib", 0),
        device_memory_gib=fields.number(row, "device_memory_gib", 0),
        skipped_steps=fields.count(row, "skipped_steps"),
        save_stall_seconds=fields.number(row, "save_stall_seconds", 0),
    )


def _is_nan(row: dict[str, Any]) -> bool:
    return fields.is_nonfinite(row, "loss")


def steps_done(rows: Rows) -> int | None:
    """Return the steps done as of the newest line, which counts them from 0."""
    step = fields.count(rows[-1], "step") if rows else None
    return None if step is None else step + 1


def starts(rows: Rows) -> int | None:
    """Return how often the run was started, as of the newest line."""
    return fields.count(rows[-1], "starts") if rows else None


def pace(rows: Rows) -> float | None:
    """Return the seconds that a step takes lately."""
    times = [fields.number(row, "seconds_per_step", 0) for row in rows[-_PACE:]]
    known = [seconds for seconds in times if seconds is not None]
    return statistics.fmean(known) if known else None


def slowest_step(rows: Rows) -> float:
    """Return the seconds that the slower steps take lately; 0 where that is not known."""
    times = (fields.number(row, "seconds_per_step_p95", 0) for row in rows[-_PACE:])
    return max((seconds for seconds in times if seconds is not None), default=0.0)


def ettr(rows: Rows, now: float, state: State) -> Ettr | None:
    """Return how much of its time the run has trained; None where no line says so.

    The lines count what was lost until they were written. Where the run should go on and writes no
    more, the time since then is lost as well. While it is stopped on purpose, it is not counted
    until the next start, which counts all of it.
    """
    row = rows[-1] if rows else {}
    trained = fields.number(row, "train_seconds", 0)
    lost = fields.number(row, "lost_seconds", 0)
    if trained is None or lost is None:
        return None
    written = fields.moment(row)
    if written is not None:
        since = max(0.0, now - written)
        if state in STANDING or (state == "running" and since > _patience(rows)):
            lost += since
    whole = trained + lost
    ratio = trained / whole if whole > 0 else 1.0
    return Ettr(ratio=ratio, train_seconds=trained, lost_seconds=lost)


def _patience(rows: Rows) -> float:
    """Return for how many seconds no line may come before the run is taken to stand still."""
    times = [t for row in rows[-_PACE:] if (t := fields.moment(row)) is not None]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    return max(_PATIENCE, _PAUSES * statistics.median(pauses) if pauses else 0.0)
