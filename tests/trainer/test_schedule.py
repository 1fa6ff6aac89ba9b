from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.streaming.epochs import EpochSchedule
from model.errors import ConfigError
from trainer.config.schema import RunConfig, ScheduleSection
from trainer.schedule import accumulation_steps, learning_rate, total_steps

IMAGENET = EpochSchedule(1_281_167, 4096)


def test_learning_rate_is_the_references(schedules: dict[str, Any]) -> None:
    recipe = schedules["pretrain_base"]
    schedule = ScheduleSection(total=recipe["epochs"], warmup=recipe["warmup_epochs"])
    peak = recipe["base_lr"] * recipe["batch"] / 256
    fine = EpochSchedule(1000, 1)  # 1000 steps an epoch hit every epoch of the table exactly
    for epoch, expected in recipe["learning_rate_at_epoch"].items():
        assert learning_rate(peak, schedule, fine, round(float(epoch) * 1000)) == pytest.approx(
            expected, rel=1e-6, abs=1e-18
        )


def test_lengths() -> None:
    assert total_steps(ScheduleSection(total=1600), IMAGENET) == 1600 * 312
    assert total_steps(ScheduleSection(unit="steps", total=800, warmup=50), IMAGENET) == 800
    rates = [
        learning_rate(1.0, ScheduleSection(unit="steps", total=800, warmup=50), IMAGENET, s)
        for s in range(800)
    ]
    assert rates[0] == 0 and max(rates) == rates[50] == 1 and rates[-1] < 1e-4


def test_the_rate_falls_in_a_line_or_to_a_tenth() -> None:
    """As mmsegmentation's PolyLR of power 1, and as detectron2's MultiStepParamScheduler."""
    line = ScheduleSection(unit="steps", total=100, warmup=20, shape="linear")
    rates = [learning_rate(2.0, line, IMAGENET, s) for s in (0, 10, 20, 60, 99)]
    assert rates == pytest.approx([0, 1, 2, 1, 2 / 80])
    tenths = ScheduleSection(
        unit="steps", total=100, warmup=20, shape="tenths", milestones=(60, 90)
    )
    rates = [learning_rate(2.0, tenths, IMAGENET, s) for s in (10, 20, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([1, 2, 2, 0.2, 0.2, 0.02, 0.02])


def test_a_run_of_one_step_at_rate_0() -> None:
    short = {"unit": "epochs", "total": 0.3, "warmup": 0.1}
    with pytest.raises(ConfigError, match=r"schedule\.total = 0\.3 epochs is one step"):
        total_steps(ScheduleSection.model_validate(short), EpochSchedule(8, 4))
    assert total_steps(ScheduleSection.model_validate(short), EpochSchedule(80, 4)) == 6
    assert (
        total_steps(ScheduleSection.model_validate({**short, "warmup": 0}), EpochSchedule(8, 4))
        == 1
    )


@given(
    tenths=st.integers(6, 300), warmup=st.floats(0, 1, exclude_max=True), samples=st.integers(1, 9)
)
def test_the_rate_is_finite_and_moves(tenths: int, warmup: float, samples: int) -> None:
    schedule = ScheduleSection(unit="epochs", total=tenths / 10, warmup=warmup * tenths / 10)
    epochs = EpochSchedule(samples, 1)
    try:
        steps = total_steps(schedule, epochs)
    except ConfigError:
        return
    rates = [learning_rate(1.0, schedule, epochs, step) for step in range(steps)]
    assert all(0 <= rate <= 1 for rate in rates) and any(rates)


def config(global_batch: int, micro: int) -> RunConfig:
    return RunConfig.model_validate({"batch": {"global_batch": global_batch, "micro": micro}})


@given(accumulation=st.integers(1, 50), micro=st.integers(1, 300), ranks=st.integers(1, 512))
def test_batches_that_work(accumulation: int, micro: int, ranks: int) -> None:
    assert accumulation_steps(config(accumulation * micro * ranks, micro), ranks) == accumulation


def test_batches_that_do_not_work_name_those_that_would() -> None:
    with pytest.raises(ConfigError) as caught:
        accumulation_steps(config(64, 24), 2)
    assert "batch.micro would work with 1, 2, 4, 8, 16, 32" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        accumulation_steps(config(64, 8), 3)
    assert "would work with 63 or 66, or on 1, 2, 4, 8 ranks" in str(caught.value)
    with pytest.raises(ConfigError, match="on 1, 2, 4, 8, 16, 32, "):
        accumulation_steps(config(1 << 24, 1), 3)  # at once, although there are millions
    with pytest.raises(ConfigError, match=r"batch\.micro would work with 1, 2, 4"):
        accumulation_steps(config(4, 8), 1)
