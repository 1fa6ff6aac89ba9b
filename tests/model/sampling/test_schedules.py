from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model.sampling.schedules import mask_length, mends, noise_scale
from model.sampling_options import SamplingOptions


def test_mask_lengths_are_the_references(schedules: dict[str, Any]) -> None:
    expected = schedules["generation_masked_after_step"]
    assert [mask_length(SamplingOptions(steps=20), s, 256) for s in range(20)] == expected[
        "cosine_20"
    ]
    linear = [
        mask_length(SamplingOptions(steps=256, schedule="linear"), s, 256) for s in range(256)
    ]
    assert (
        linear[:10] == expected["linear_256_first10"]
        and linear[-3:] == expected["linear_256_last3"]
    )


def test_temperature() -> None:
    sampling = SamplingOptions(steps=4)
    assert noise_scale(sampling, 0) == 4.5 and noise_scale(sampling, 3) == 0
    assert noise_scale(SamplingOptions(steps=4, temperature="constant"), 3) == 6


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "mending"), [(8, 2), (20, 7), (5, 3)])
def test_steps_that_mend_hold_the_mask_and_change_no_other(
    steps: int, mending: int, schedule: str
) -> None:
    sampling = SamplingOptions(steps=steps, remask_steps=mending, schedule=schedule)  # type: ignore[arg-type]
    plain = SamplingOptions(steps=steps - mending, schedule=schedule)  # type: ignore[arg-type]
    lengths = [mask_length(sampling, step, 64) for step in range(steps)]
    held = [step for step in range(steps) if mends(sampling, step)]
    assert len(held) == mending and held[0] > 0
    assert {lengths[step] for step in held} == {lengths[held[0] - 1]}
    assert lengths[held[0]] >= 32 > lengths[held[-1] + 1]  # as late as half of them is masked
    others = [length for step, length in enumerate(lengths) if step not in held]
    assert others == [mask_length(plain, step, 64) for step in range(steps - mending)]


def test_tokens_must_become_known_in_some_steps() -> None:
    with pytest.raises(ValidationError, match="leaves fewer than the two"):
        SamplingOptions(steps=8, remask_steps=7)
