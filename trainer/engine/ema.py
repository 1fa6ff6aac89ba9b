"""An exponential moving average (EMA) of the float32 weights. Each rank keeps that of the fragments
that it owns."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.engine.partition import Partition


class WeightEMA:
    """After each applied update, a <- d a + (1 - d) w.

    At update n the decay is d = min(decay, (1 + n) / (10 + n)), so that the random start is soon
    forgotten. values: (length,) float32 for each fragment of `partition.owned`.
    """

    def __init__(self, partition: Partition, decay: float) -> None:
        self._partition, self._decay = partition, decay
        self.values: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Start from the weights as they are."""
        self.values = [fragment.weights().clone() for fragment in self._partition.owned]

    @torch.no_grad()
    def update(self, updates: Tensor, applied: Tensor) -> None:
        """Take the weights into the average if a step was applied. Neither scalar leaves its
        device, which is that of the weights.

        updates: int64, how many there were so far, this one included. applied: bool; where it is
        False, the values keep their bits.
        """
        if self.values:
            counted = updates.double()
            decay = ((1 + counted) / (10 + counted)).clamp(max=self._decay)
            share = torch.where(applied, 1 - decay, 0.0).float()
            weights = [fragment.weights() for fragment in self._partition.owned]
            torch._foreach_lerp_(self.values, weights, [share] * len(weights))
