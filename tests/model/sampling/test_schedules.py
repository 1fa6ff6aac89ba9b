from __future__ import annotations

from typing import Any

from model.sampling.schedules import mask_length, noise_scale
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
