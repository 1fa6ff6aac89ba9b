"""An exponential moving average of the float32 weights, each rank keeping that of the fragments it
owns."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.engine.partition import Partition


class WeightAverage:
    """a <- d a + (1 - d) w after each applied update, d = min(decay, (1 + n) / (10 + n)) at update
    n, so that the random start is soon forgotten. values: (length,) float32 for each fragment of
    `partition.owned`."""

    def __init__(self, partition: Partition, decay: float) -> None:
        self._partition, self._decay = partition, decay
        self.values: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Start from the weights as they are."""
        self.values = [fragment.weights().clone() for fragment in self._partition.owned]

    @torch.no_grad()
    def update(self, applied: int) -> None:
        """applied: updates so far, this one included."""
        if self.values:
            decay = min(self._decay, (1 + applied) / (10 + applied))
            torch._foreach_lerp_(
                self.values, [f.weights() for f in self._partition.owned], 1 - decay
            )
