"""What a run is and how it stands, in one sentence, by what it wrote."""

from __future__ import annotations

import math
from datetime import datetime
from typing import NamedTuple

from trainer.evaluation.reporting.records import RunRecord, number
from trainer.objectives.registry import OBJECTIVES
from trainer.run_folder import EXIT_DIVERGED, EXIT_DONE, EXIT_HANG, EXIT_PREEMPTED

_FRESH = 120.0  # seconds for which a sign of life counts, or several steps of a slow run


class State(NamedTuple):
    """How a run stands.

    word: finished, running, stopped, diverged, failed, died, unfinished or not begun. sentence:
    what the run is, and more on how it stands.
    """

    word: str
    sentence: str


def state_of(run: RunRecord, now: float) -> State:
    """The state of a run. now: seconds since 1970.

    A run on a store is known as far as its last upload.
    """
    word, how = _ending(run, now)
    if run.metrics and math.isnan(run.metrics[-1].get("loss", 0.0)):
        how += "; its last recorded loss is not finite"
    return State(word, f"{_description(run)}: {how}.")


def _ending(run: RunRecord, now: float) -> tuple[str, str]:
    last, steps = (run.metrics[-1] if run.metrics else {}), run.steps
    at = f"at step {steps:,}{_of_total(run)}" if steps else "before its first metric line"
    ended = f" on {when(run.ending.time)}" if run.ending and run.ending.time is not None else ""
    if run.done is not None and run.done.step >= steps:
        trained = last.get("train_seconds", math.nan)
        took = f", after {duration(trained)} of training" if math.isfinite(trained) else ""
        return "finished", f"finished at step {run.done.step:,}{ended or _recorded(last)}{took}"
    if run.ending is not None and run.ending.code != EXIT_DONE:
        reason = run.ending.reason.rstrip(". ") or "no reason was left"
        if run.ending.code == EXIT_PREEMPTED:
            return "stopped", f"stopped{ended}: {reason}"
        if run.ending.code == EXIT_DIVERGED:
            return "diverged", f"diverged{ended} {at}: {reason}"
        return "failed", f"failed{ended} {at} with exit code {run.ending.code}: {reason}"
    if run.last_sign is not None:
        age = now - run.last_sign.time
        pace = last.get("seconds_per_step", 0.0)
        if age < max(_FRESH, 5 * pace if math.isfinite(pace) else 0.0):
            return (
                "running",
                f"running, {at}; its last sign of life was {duration(max(0.0, age))} old",
            )
        hung = (
            run.incidents[-1]
            if run.incidents and run.incidents[-1].get("event") == "hang"
            else None
        )
        if hung:
            section = hung.get("section")
            where = f" in {section}" if isinstance(section, str) else ""
            return "died", f"hung{where} {at} and was ended with exit code {EXIT_HANG}"
        silent = when(run.last_sign.time)
        return (
            "died",
            f"died {at}: no sign of life since {silent}, and no record of how it ended; run it "
            "again to go on",
        )
    if steps:
        known = ", as far as its store tells" if run.on_store else ""
        return (
            "unfinished",
            f"not finished{known}; its last metric line is of step "
            f"{steps:,}{_of_total(run)}{_recorded(last)}",
        )
    return "not begun", "nothing is recorded of its training yet"


def _description(run: RunRecord) -> str:
    entry = OBJECTIVES.get(run.objective)
    title = "A run whose objective is not known"
    if entry:
        key, titles = entry.variants
        title = titles.get(str(run.setting(*key.split("."))), entry.title)
    blocks, width = (
        run.setting(entry.sizes if entry else "", "sizes", key) for key in ("depth", "dim")
    )
    pixels = run.setting(*entry.image_size.split(".")) if entry else None
    batch = run.setting("batch", "global_batch")
    ranks = run.environment.get("world_size")
    parts = [
        f"{blocks} blocks of width {width}" if number(blocks) and number(width) else "",
        f"{pixels} px" if number(pixels) else "",
        f"batches of {batch:,}" if number(batch) else "",
        (f"{ranks:,} ranks" if ranks != 1 else "one rank") if number(ranks) else "",
    ]
    known = ", ".join(filter(None, parts))
    return f"{title} ({known})" if known else title


def _of_total(run: RunRecord) -> str:
    total = number(run.setting("schedule", "total"))
    known = total is not None and total >= run.steps and run.setting("schedule", "unit") == "steps"
    return f" of {total:,.0f}" if known else ""


def _recorded(row: dict[str, float]) -> str:
    return f" on {when(row['time'])}" if "time" in row and when(row["time"]) else ""


def when(seconds: object) -> str:
    """Write seconds since 1970 as a local time; nothing for what is no time."""
    time = number(seconds)
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time).strftime("%-d %B %Y, %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""


def duration(seconds: float) -> str:
    """Write a time span in words, as "2.5 hours"."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
