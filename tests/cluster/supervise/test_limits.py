"""A rank that beats is slow and no more; one that is silent for longer than its section may take
hangs."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.supervise.limits import BeatAges, Limits, Sign, SilenceWatch

LIMITS = Limits()
FIXED = {
    None: 600.0,
    "setup": 600.0,
    "restore": 1800.0,
    "data": 120.0,
    "save": 600.0,
    "end": 600.0,
    "exit": 60.0,
    "of a later version": 1800.0,
}
POLL = 0.5  # seconds between two looks
LAG = 1.0  # seconds that a beat may take to its file

times = st.floats(0.01, 100, allow_nan=False)


def watched(
    durations: list[float], *, ranks: int = 1, start: int = 0, slow: float = 1.0
) -> tuple[SilenceWatch, list[object], float]:
    """Watch ranks that make steps of these durations, the last one `slow` times as long. Returns
    the watch, what it called overdue, and the moment of the last beat."""
    watch, overdue = SilenceWatch(LIMITS), list[object]()
    ends = list(itertools.accumulate(durations))
    now = 0.0
    while now < ends[-1]:
        done = sum(end <= max(0.0, now - LAG) for end in ends)
        moment = ends[done - 1] if done else 0.0
        section = "step" if done < len(ends) else "data"
        signs = [
            Sign(rank, section, start + done, (now - moment) * (slow if rank == ranks - 1 else 1))
            for rank in range(ranks)
        ]
        overdue += watch.observe(signs, now)
        now += POLL
    return watch, overdue, ends[-1]


@pytest.mark.parametrize("section", FIXED)
@given(age=st.floats(0, 5000), step=st.integers(0, 10**9))
def test_a_section_has_its_limit(section: str | None, age: float, step: int) -> None:
    overdue = SilenceWatch(LIMITS).observe([Sign(3, section, step, age)], 1e6)
    assert bool(overdue) == (age > FIXED[section])
    if overdue:
        assert overdue[0][:4] == (3, section or "setup", step, age)


@given(age=st.floats(0, 5000))
def test_the_first_step_of_an_attempt_has_its_own_limit(age: float) -> None:
    watch = SilenceWatch(LIMITS)
    watch.observe([Sign(0, "data", 70, 0.0)], 100)
    assert bool(watch.observe([Sign(0, "step", 70, age)], 100 + age)) == (age > 600)


@given(durations=st.lists(times, min_size=3, max_size=40))
def test_the_limit_of_a_step_follows_the_steps(durations: list[float]) -> None:
    """It is never below what is set, nor below ten times the p99 of the steps that were seen."""
    watch, _, _ = watched(durations)
    limit = watch.limit(0, "step")
    if watch.step_seconds is None:
        assert limit == 600
        return
    assert limit == max(30, 10 * watch.step_seconds)
    assert watch.step_seconds <= max(durations) + LAG + 2 * POLL


@given(
    durations=st.lists(st.floats(0.05, 30), min_size=2, max_size=60),
    ranks=st.integers(1, 4),
    start=st.integers(0, 1000),
)
def test_a_slow_rank_is_no_hang(durations: list[float], ranks: int, start: int) -> None:
    """Whatever the order of fast and slow steps: no step that takes 30 s or less is a hang."""
    _, overdue, _ = watched([d * 0.9 for d in durations], ranks=ranks, start=start)
    assert not overdue


@given(seconds=st.floats(31, 200), count=st.integers(2, 12))
def test_steps_that_all_take_long_are_no_hang(seconds: float, count: int) -> None:
    watch, overdue, end = watched([seconds] * count)
    assert not overdue
    assert not watch.observe([Sign(0, "step", count, 9 * seconds)], end + 9 * seconds)


@given(durations=st.lists(times, min_size=2, max_size=40))
def test_a_hang_in_a_step_is_noticed_within_its_limit(durations: list[float]) -> None:
    watch, _, end = watched(durations)
    assert not watch.observe([Sign(0, "step", 99, 0.0)], end)
    limit = watch.limit(0, "step")
    looks = [POLL * n for n in range(math.ceil(limit / POLL) + 3)]
    found = [age for age in looks if watch.observe([Sign(0, "step", 99, age)], end + age)]
    assert found and limit < found[0] <= limit + POLL + 1e-9


def test_one_compiled_step_does_not_make_all_later_limits_long() -> None:
    watch, _, _ = watched([300.0] + [1.0] * 20)
    assert watch.limit(0, "step") == 30


def test_one_step_in_a_hundred_may_be_slow_without_moving_the_limit() -> None:
    watch, _, _ = watched([5.0] * 220 + [40.0] + [5.0])
    assert watch.limit(0, "step") == pytest.approx(50, rel=0.4)


def test_a_wait_for_data_is_no_time_of_a_step() -> None:
    watch, now = SilenceWatch(LIMITS), 0.0
    for step in range(10):
        for _ in range(200):  # 100 s of waiting, with beats
            assert not watch.observe([Sign(0, "data", step, 0.0)], now)
            now += POLL
        assert not watch.observe([Sign(0, "step", step, 0.0)], now)
        now += 4.0
    assert watch.step_seconds == pytest.approx(4, abs=POLL)
    assert watch.limit(0, "step") == pytest.approx(40, abs=10 * POLL)


def test_a_save_or_a_restore_is_no_time_of_a_step() -> None:
    """Also where every step is followed by a save."""
    watch, now = SilenceWatch(LIMITS), 0.0
    for step in range(10):
        for section, number, seconds in (
            ("data", step, 0.1),
            ("step", step, 6.0),
            ("save", step + 1, 300.0),
        ):
            watch.observe([Sign(0, section, number, 0.0)], now)
            now += seconds
    assert watch.step_seconds == pytest.approx(6)
    watch.observe([Sign(0, "restore", 11, 0.0)], now)
    watch.observe([Sign(0, "data", 4, 0.0)], now + 500)  # a rewind
    assert watch.step_seconds == pytest.approx(6)


def test_a_rank_that_has_not_stepped_keeps_its_first_limit() -> None:
    watch = SilenceWatch(LIMITS)
    for step in range(5):
        watch.observe([Sign(0, "step", step, 0.0), Sign(1, "step", 0, 1.0 * step)], float(step))
    assert (watch.limit(0, "step"), watch.limit(1, "step")) == (30, 600)


def test_the_most_silent_rank_comes_first() -> None:
    signs = [Sign(0, "data", 4, 121), Sign(1, "data", 4, 500), Sign(2, "data", 4, 3)]
    first, second = SilenceWatch(LIMITS).observe(signs, 1000)
    assert (first.rank, second.rank) == (1, 0)
    assert str(first) == (
        "rank 1 has been silent for 500 s in data at step 4, where 120 s are allowed"
    )


def test_the_rank_that_others_wait_for_comes_first() -> None:
    """Rank 2 saves, which may take longer; the others wait for it at the next border."""
    watch = SilenceWatch(LIMITS)
    others = [Sign(rank, "data", 4, 119.0) for rank in range(2)]
    assert not watch.observe([*others, Sign(2, "save", 4, 125.0), Sign(3, "data", 4, 5.0)], 1000)
    others = [Sign(rank, "data", 4, 121.0) for rank in range(2)]
    found = watch.observe([*others, Sign(2, "save", 4, 127.0), Sign(3, "data", 4, 7.0)], 1002)
    assert [rank.rank for rank in found] == [2, 0, 1]
    assert str(found[0]) == (
        "rank 2 has been silent for 127 s in save at step 4, and others that wait for it hang"
    )


def test_many_ranks_do_not_shorten_the_memory() -> None:
    """Of a thousand ranks, the steps of the last hundred are still known."""
    watch = SilenceWatch(LIMITS)
    for step in range(100):
        now = 20.0 * step if step < 11 else 200.0 + 4.0 * (step - 10)
        watch.observe([Sign(rank, "step", step, 0.0) for rank in range(1000)], now)
        assert step < 2 or watch.step_seconds == 20.0, step


@given(
    walls=st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20, unique=True),
    pause=st.floats(0.1, 50),
)
def test_ages_do_not_follow_the_wall_clock(walls: list[float], pause: float) -> None:
    ages, now = BeatAges(), 0.0
    for wall in walls:
        assert ages.age(0, wall, now) == 0
        assert ages.age(0, wall, now + pause) == pytest.approx(pause)
        now += pause
    assert ages.age(1, walls[-1], now) == 0


def test_limits_are_bounded() -> None:
    for value in (0, -1, math.inf, math.nan, True, 1e9, "soon"):
        with pytest.raises(ValidationError):
            Limits.model_validate({"limit_step": value})
    assert Limits(limit_restore=5, limit_step=2).longest == 600
