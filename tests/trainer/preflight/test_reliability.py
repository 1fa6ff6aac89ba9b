"""The model of failures: against a simulation, and what must hold of any such model."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.preflight.reliability import (
    MEAN_GPU_HOURS,
    Failures,
    best_interval,
    mean_time_to_failure,
    training_ratio,
    waste,
    young_interval,
)

FAILURES = st.builds(
    Failures,
    failure=st.floats(60, 1e7),
    stall=st.floats(0.01, 600),
    commit=st.floats(0, 600),
    down=st.floats(0, 3600),
)
INTERVALS = st.floats(0.1, 1e6)


def simulated(interval: float, failures: Failures, lives: int, seed: int) -> tuple[float, float]:
    """The ratio of a simulated run, and its standard error.

    A life is from a restart to the next failure, with the time down after it. Each is drawn and
    walked through by itself, save by save: nothing of the formula is used.
    """
    rng, counted, lasted = random.Random(seed), [], []
    for _ in range(lives):
        alive, at, kept = rng.expovariate(1 / failures.failure), 0.0, 0
        while at + interval + failures.stall + failures.commit <= alive:
            at, kept = at + interval + failures.stall, kept + 1
        down = 0.0
        while (again := rng.expovariate(1 / failures.failure)) < failures.down:
            down += again  # it failed while it started
        counted.append(kept * interval)
        lasted.append(alive + down + failures.down)
    ratio = sum(counted) / sum(lasted)
    mean = sum(lasted) / lives
    spread = sum((c - ratio * d) ** 2 for c, d in zip(counted, lasted, strict=True))
    return ratio, math.sqrt(spread) / lives / mean


@pytest.mark.parametrize(
    ("interval", "failures"),
    [
        (600.0, Failures(28_440, 5, 30, 150)),  # 1,024 GPUs
        (300.0, Failures(1_777, 10, 60, 300)),  # 16,384 GPUs, saves that take long
        (60.0, Failures(120, 20, 0, 30)),  # hardly anything gets done
        (2_000.0, Failures(1_000, 1, 500, 900)),  # saves too rare
    ],
)
def test_the_ratio_is_that_of_a_simulation(interval: float, failures: Failures) -> None:
    ratio, error = simulated(interval, failures, lives=20_000, seed=1)
    assert abs(training_ratio(interval, failures) - ratio) < 4 * error
    assert error < 0.01


@given(FAILURES, INTERVALS)
def test_a_ratio_is_a_share(failures: Failures, interval: float) -> None:
    assert 0 <= training_ratio(interval, failures) <= 1


@given(FAILURES, INTERVALS, st.integers(1, 1000), st.integers(1, 1000))
def test_more_gpus_never_train_a_larger_share(
    failures: Failures, interval: float, few: int, more: int
) -> None:
    alone = mean_time_to_failure(MEAN_GPU_HOURS, few)
    together = mean_time_to_failure(MEAN_GPU_HOURS, few + more)
    small, large = (
        training_ratio(interval, failures._replace(failure=seconds))
        for seconds in (alone, together)
    )
    assert together < alone
    assert large <= small


@given(FAILURES, st.floats(1.01, 100))
def test_no_other_interval_is_better_than_the_best(failures: Failures, factor: float) -> None:
    best = best_interval(failures)
    assert 0 < best < failures.failure
    at_best = training_ratio(best, failures)
    for other in (best * factor, best / factor):
        assert training_ratio(other, failures) <= at_best * (1 + 1e-12)


@given(FAILURES, st.floats(1.1, 10))
def test_what_costs_more_is_done_less_often(failures: Failures, factor: float) -> None:
    dearer = failures._replace(stall=failures.stall * factor)
    rarer = failures._replace(failure=failures.failure * factor)
    assert best_interval(dearer) > best_interval(failures)
    assert best_interval(rarer) > best_interval(failures)


@given(st.floats(1e5, 1e8), st.floats(0.1, 10))
def test_where_failures_are_rare_youngs_estimate_and_the_first_order_hold(
    failure: float, stall: float
) -> None:
    failures = Failures(failure, stall, commit=20, down=100)
    best = best_interval(failures)
    assert young_interval(failures) == pytest.approx(best, rel=0.02)
    assert 1 - waste(best, failures).total == pytest.approx(
        training_ratio(best, failures), abs=2e-4
    )


def test_extremes_give_numbers() -> None:
    assert training_ratio(1e9, Failures(1.0, 0, 0, 0)) == 0
    assert training_ratio(1.0, Failures(1e-6, 1, 1, 1)) == 0
    assert best_interval(Failures(1e9, 0, 0, 0)) == pytest.approx(0, abs=1)
    assert training_ratio(1e-9, Failures(1e9, 0, 0, 0)) == pytest.approx(1)


def test_the_published_mean_is_that_of_1024_gpus() -> None:
    assert mean_time_to_failure(MEAN_GPU_HOURS, 1024) == pytest.approx(7.9 * 3600)
