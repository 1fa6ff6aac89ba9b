from __future__ import annotations

import pytest
from pydantic import ValidationError

from model.sampling.schedules import mask_length, mends, token_temperature, top_p
from model.sampling_options import SamplingOptions


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


def test_temperature_and_top_p_go_in_a_line_where_an_end_is_given() -> None:
    steady = SamplingOptions(steps=5, top_p=0.7, token_temperature=0.9)
    assert {top_p(steady, s) for s in range(5)} == {0.7}
    assert {token_temperature(steady, s) for s in range(5)} == {0.9}
    falling = SamplingOptions(
        steps=5, top_p_end=0.6, token_temperature=1.2, token_temperature_end=1
    )
    assert [top_p(falling, s) for s in range(5)] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    assert [token_temperature(falling, s) for s in (0, 2, 4)] == pytest.approx([1.2, 1.1, 1])


def test_tokens_must_become_known_in_some_steps() -> None:
    with pytest.raises(ValidationError, match="leaves fewer than the two"):
        SamplingOptions(steps=8, remask_steps=7)
