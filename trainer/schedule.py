"""Learning rate and batch arithmetic: pure functions of the step and the configuration."""

from __future__ import annotations

import bisect
import math

from data_pipeline.streaming.epochs import EpochSchedule
from model.errors import ConfigError
from trainer.config.schema import RunConfig, ScheduleSection


def total_steps(schedule: ScheduleSection, epochs: EpochSchedule) -> int:
    """The length of the run. Raises ConfigError where it is one step, at a learning rate of 0."""
    per_unit = epochs.steps_per_epoch if schedule.unit == "epochs" else 1
    steps = max(1, round(schedule.total * per_unit))
    if steps == 1 and schedule.warmup > 0:
        raise ConfigError(
            f"schedule.total = {schedule.total:g} {schedule.unit} is one step, at which the "
            "warm-up begins with a learning rate of 0; set a longer schedule.total, or "
            "schedule.warmup = 0"
        )
    return steps


def learning_rate(
    peak: float, schedule: ScheduleSection, epochs: EpochSchedule, step: int
) -> float:
    """The learning rate of a step: a linear warm-up to `peak`, then half a cosine to 0 (ADDP table
    7), a line to 0 (UperNet), or a tenth of it from each milestone on (ViTDet). step: counts from
    0. The warm-up must be shorter than the whole schedule."""
    t = step / epochs.steps_per_epoch if schedule.unit == "epochs" else float(step)
    if t < schedule.warmup:
        return peak * t / schedule.warmup
    if schedule.shape == "tenths":
        return peak * 0.1 ** bisect.bisect_right(schedule.milestones, t)
    if schedule.shape == "linear":
        return peak * (schedule.total - t) / (schedule.total - schedule.warmup)
    angle = math.pi * (t - schedule.warmup) / (schedule.total - schedule.warmup)
    return peak * 0.5 * (1 + math.cos(angle))


def accumulation_steps(config: RunConfig, world_size: int) -> int:
    """How many micro batches a rank goes through in one optimizer step. Raises ConfigError, which
    says which values would work."""
    global_batch, micro = config.batch.global_batch, config.batch.micro
    steps, rest = divmod(global_batch, micro * world_size)
    if steps and not rest:
        return steps
    per_rank, uneven = divmod(global_batch, world_size)
    if uneven:
        near = sorted({max(1, per_rank), per_rank + 1})
        possible = possible_world_sizes(config) or _divisors(global_batch)
        raise ConfigError(
            f"batch.global_batch = {global_batch} cannot be split over {world_size} ranks; it "
            f"would work with {' or '.join(str(n * world_size) for n in near)}, or on "
            f"{_list(possible)} ranks"
        )
    sizes = possible_world_sizes(config)
    elsewhere = f", or this one on {_list(sizes)} ranks" if sizes else ""
    raise ConfigError(
        f"batch.global_batch = {global_batch} is no multiple of batch.micro = {micro} x "
        f"{world_size} ranks; batch.micro would work with {_list(_divisors(per_rank))}{elsewhere}"
    )


def possible_world_sizes(config: RunConfig) -> list[int]:
    """The numbers of ranks among which the global batch can be divided in whole micro batches."""
    parts, rest = divmod(config.batch.global_batch, config.batch.micro)
    return [] if rest else _divisors(parts)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _list(values: list[int]) -> str:
    shown = values if len(values) <= 12 else [*values[:6], *values[-6:]]
    return ", ".join(map(str, shown))
