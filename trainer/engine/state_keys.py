"""The names of what the engine keeps for each parameter, as checkpoints store it. Imports no torch.

A parameter's weights and their moving average are kept in float32; beside them stands the
optimizer's own state, under the optimizer's names.
"""

from __future__ import annotations

from typing import NamedTuple

WEIGHTS, EMA, BUFFER = "weights", "ema", "buffer"


class Range(NamedTuple):
    """Elements start .. start+length-1 of a flattened parameter, or of a state of it."""

    state_key: str
    parameter: str
    start: int
    length: int
