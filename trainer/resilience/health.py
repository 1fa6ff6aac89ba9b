"""Spikes of the loss or the gradient norm, judged by running statistics of the steps before them,
and what a run does about one.

Everything here is a pure function of the run's own numbers, so that every rank, and a resumed run,
comes to the same decision.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Literal, NamedTuple

from model.errors import ADDPError
from trainer.config.schema import HealthSection
from trainer.resilience.state import Row, TrainerState
from trainer.run_folder import EXIT_DIVERGED

ADVICE = "Look at incidents/ and metrics.jsonl; a lower optimizer.base_lr or other data may help"

Answer = Literal["none", "rewind", "stop"]


class Diverged(ADDPError):
    """Training does not recover, and to start it again would not help."""

    exit_code = EXIT_DIVERGED


class Spike(NamedTuple):
    """Steps first .. last went wrong; reason: what was seen, for people."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        return f"{self.first} to {self.last}: {self.reason}"


def judge(
    state: TrainerState, rows: list[Row], first_step: int, section: HealthSection
) -> Spike | None:
    """Take finished steps into the statistics of `state`. Returns the spike that they end in, if
    there is one.

    A step is out of line where its loss lies more than `loss_deviations` robust deviations (1.4826
    times the median absolute one, at least 1 % of the median) over the median, or its gradient norm
    over `norm_factor` times the median, of the last `history` steps. `consecutive` of them in a row
    are a spike; fewer are only kept out of the statistics.
    """
    logged = None
    for step, row in enumerate(rows, first_step):
        if not row.applied or not math.isfinite(row.loss):
            state.nonfinite += 1
            state.in_a_row += 1
            if state.in_a_row >= section.max_nonfinite_steps:
                return Spike(
                    step - state.in_a_row + 1,
                    step,
                    f"{state.in_a_row} steps without a finite gradient",
                )
            continue
        state.in_a_row = 0
        reason = _out_of_line(state, row, section) if section.spikes != "ignore" else None
        state.suspects = [*state.suspects, step] if reason else []
        if reason and len(state.suspects) >= section.consecutive:
            logged = Spike(state.suspects[0], first_step + len(rows) - 1, reason)
            if section.spikes == "rewind":
                return logged
        if not reason or logged:  # one that is only logged becomes the new level
            state.losses = [*state.losses, row.loss][-section.history :]
            state.norms = [*state.norms, row.norm][-section.history :]
    return logged


def answer_to(state: TrainerState, rewinds: int, section: HealthSection) -> Answer:
    """What the run does about a spike. rewinds: how many there were before.

    With `spikes: rewind` it goes back, and stops once it has done so too often. Otherwise it stops
    only where too many steps in a row had no finite gradient, and else no more than says so.
    """
    if section.spikes == "rewind":
        return "rewind" if rewinds < section.max_rewinds else "stop"
    return "stop" if state.in_a_row >= section.max_nonfinite_steps else "none"


def unfit(state: TrainerState, steps: int, section: HealthSection) -> str | None:
    """Why a run that has come to its end is no success; None where it is one."""
    if state.in_a_row >= min(section.consecutive, steps):
        return f"its last {state.in_a_row} steps had no finite loss or gradient"
    if 2 * state.nonfinite > steps:
        return (
            f"{state.nonfinite} of its {steps} steps were skipped, since they had no finite "
            "loss or gradient"
        )
    return None


def _out_of_line(state: TrainerState, row: Row, section: HealthSection) -> str | None:
    if len(state.losses) < section.history // 2:
        return None
    middle = median(state.losses)
    spread = max(1.4826 * median(abs(loss - middle) for loss in state.losses), 0.01 * abs(middle))
    if row.loss > middle + section.loss_deviations * spread:
        return (
            f"loss {row.loss:.4g}, {(row.loss - middle) / spread:.1f} deviations over the median "
            f"{middle:.4g}"
        )
    usual = median(state.norms)
    if row.norm > section.norm_factor * usual:
        return f"gradient norm {row.norm:.4g}, {row.norm / usual:.1f} times the median {usual:.4g}"
    return None
