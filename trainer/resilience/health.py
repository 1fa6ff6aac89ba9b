"""Spikes of the loss or the gradient norm, against running statistics of the steps before them."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from model.errors import ADDPError
from trainer.config.schema import HealthSection
from trainer.resilience.state import Row, TrainerState
from trainer.run_folder import EXIT_DIVERGED

ADVICE = "Look at incidents/ and metrics.jsonl; a lower optimizer.base_lr or other data may help"


class Diverged(ADDPError):
    """Training does not recover; to start it again would not help."""

    exit_code = EXIT_DIVERGED


class Spike(NamedTuple):
    """Steps first .. last went wrong; reason: what was seen, for people."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        return f"{self.first} to {self.last}: {self.reason}"


def judge(
    progress: TrainerState, rows: list[Row], first_step: int, section: HealthSection
) -> Spike | None:
    """Take finished steps into the statistics, or return the spike that they end in.

    A pure function of the run's own numbers, so that every rank, and a resumed run, finds the same.
    A step is out of line where its loss lies more than `loss_deviations` robust deviations (1.4826
    times the median absolute one, at least 1 % of the median) over the median, or its gradient norm
    over `norm_factor` times the median, of the last `history` steps. `consecutive` of them in a row
    are a spike; fewer are only kept out of the statistics.
    """
    found = None
    for step, row in enumerate(rows, first_step):
        if not row.applied or not math.isfinite(row.loss):
            progress.nonfinite += 1
            progress.in_a_row += 1
            if progress.in_a_row >= section.max_nonfinite_steps:
                return Spike(
                    step - progress.in_a_row + 1,
                    step,
                    f"{progress.in_a_row} steps without a finite gradient",
                )
            continue
        progress.in_a_row = 0
        reason = _out_of_line(progress, row, section) if section.spikes != "ignore" else None
        progress.suspects = [*progress.suspects, step] if reason else []
        if reason and len(progress.suspects) >= section.consecutive:
            found = Spike(progress.suspects[0], first_step + len(rows) - 1, reason)
            if section.spikes == "rewind":
                return found
        if not reason or found:  # one that is only logged becomes the new level
            progress.losses = [*progress.losses, row.loss][-section.history :]
            progress.norms = [*progress.norms, row.norm][-section.history :]
    return found


def unfit(progress: TrainerState, steps: int, section: HealthSection) -> str | None:
    """Why a run that has come to its end is no success; None where it is one."""
    if progress.in_a_row >= min(section.consecutive, steps):
        return f"its last {progress.in_a_row} steps had no finite loss or gradient"
    if 2 * progress.nonfinite > steps:
        return (
            f"{progress.nonfinite} of its {steps} steps were skipped, since they had no finite "
            "loss or gradient"
        )
    return None


def _out_of_line(progress: TrainerState, row: Row, section: HealthSection) -> str | None:
    if len(progress.losses) < section.history // 2:
        return None
    middle = median(progress.losses)
    spread = max(
        1.4826 * median(abs(loss - middle) for loss in progress.losses), 0.01 * abs(middle)
    )
    if row.loss > middle + section.loss_deviations * spread:
        return (
            f"loss {row.loss:.4g}, {(row.loss - middle) / spread:.1f} deviations over the median "
            f"{middle:.4g}"
        )
    usual = median(progress.norms)
    if row.norm > section.norm_factor * usual:
        return f"gradient norm {row.norm:.4g}, {row.norm / usual:.1f} times the median {usual:.4g}"
    return None
