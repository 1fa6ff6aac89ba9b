"""What follows from the number of a step alone: how many tokens it leaves masked, and how random
their choice is."""

from __future__ import annotations

import math

import numpy as np

from model.sampling_options import SamplingOptions


def mask_length(sampling: SamplingOptions, step: int, length: int) -> int:
    """Return how many of L tokens stay masked after a step 0 .. N-1.

    They are clip(ceil(L f((step + 1) / N)), 1, L), f the schedule.
    """
    u = (step + 1) / sampling.steps
    # In float32, as in the reference: in float64, an error above a whole number would add a token.
    ratio = np.float32(math.cos(math.pi / 2 * u) if sampling.schedule == "cosine" else 1 - u)
    return min(max(math.ceil(np.float32(length) * ratio), 1), length)


def noise_scale(sampling: SamplingOptions, step: int) -> float:
    """Return the weight of the Gumbel noise in the confidence."""
    decay = 1 - (step + 1) / sampling.steps if sampling.temperature == "dynamic" else 1.0
    return sampling.choice_temperature * decay
