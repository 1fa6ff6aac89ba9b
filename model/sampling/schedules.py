"""What follows from the number of a step alone: how many tokens it leaves masked, and how random
their choice is.

    masked  L |\\
              | \\        cosine or linear, in N - R steps
          L/2 |  \\_____
              |   R    \\      R steps that mend hold half of the tokens masked
            1 |         \\__
              +------------- step 0 .. N-1
"""

from __future__ import annotations

import math

import numpy as np

from model.sampling_options import SamplingOptions

_HELD = 0.5  # the smallest ratio of masked tokens that the network sees in training


def _ratio(sampling: SamplingOptions, step: int) -> float:
    """Return f((step + 1) / (N - R)), the share that is masked after a step of the descent."""
    u = (step + 1) / (sampling.steps - sampling.remask_steps)
    return math.cos(math.pi / 2 * u) if sampling.schedule == "cosine" else 1 - u


def _first_mending(sampling: SamplingOptions) -> int:
    """Return the step with which mending begins: until then, half of the tokens or more stay
    masked."""
    descent = sampling.steps - sampling.remask_steps
    return sum(_ratio(sampling, step) > _HELD - 1e-9 for step in range(descent))


def mends(sampling: SamplingOptions, step: int) -> bool:
    """Whether a step takes known tokens back."""
    if not sampling.remask_steps:
        return False
    first = _first_mending(sampling)
    return first <= step < first + sampling.remask_steps


def mask_length(sampling: SamplingOptions, step: int, length: int) -> int:
    """Return how many of L tokens stay masked after a step 0 .. N-1.

    They are clip(ceil(L f((step + 1) / N)), 1, L), f the schedule. Steps that mend leave as many as
    the step before them, and do not count in this formula.
    """
    if sampling.remask_steps:
        first = _first_mending(sampling)
        if step >= first:
            step = max(first - 1, step - sampling.remask_steps)
    # In float32, as in the reference: in float64, an error above a whole number would add a token.
    ratio = np.float32(_ratio(sampling, step))
    return min(max(math.ceil(np.float32(length) * ratio), 1), length)


def noise_scale(sampling: SamplingOptions, step: int) -> float:
    """Return the weight of the Gumbel noise in the confidence."""
    decay = 1 - (step + 1) / sampling.steps if sampling.temperature == "dynamic" else 1.0
    return sampling.choice_temperature * decay
