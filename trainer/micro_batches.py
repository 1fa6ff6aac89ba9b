"""The inputs of micro batches. With `frozen_ahead` they are made one ahead on CUDA: the frozen
networks of the next micro batch run beside the backward pass of this one.

    stream of the training    | forward 4 | backward 4           | optimizer | forward 5 | ...
                                          |                                  ^
    stream beside it                      | frozen networks for 5 -----------+ is waited for

What an objective makes of a batch depends on nothing but the batch, so that it does not matter when
it is made: a rewind, a stop or a start in between changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.randomness import raw_bits
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs, Objective


class MicroBatch(NamedTuple):
    """A micro batch in host memory. first: the index of its first sample in the run's data, which
    no other micro batch has. step: its data step."""

    first: int
    step: int
    batch: Any


def runs_ahead(config: RunConfig, objective: Objective, device: torch.device) -> bool:
    """Whether inputs are made one micro batch ahead: only where that has something to run
    beside."""
    return config.frozen_ahead and objective.inputs_ahead and device.type == "cuda"


class MicroBatches:
    """Makes the inputs of this rank's micro batches, one after the other.

    ahead: `make_ahead` does something. That takes the memory in which the frozen networks compute,
    since PyTorch's allocator gives no memory of one stream to another.
    """

    def __init__(
        self, objective: Objective, device: torch.device, seed: int, *, ahead: bool
    ) -> None:
        self._objective, self._device, self._seed = objective, device, seed
        self._ahead = ahead
        self._beside: torch.cuda.Stream | None = None
        if ahead and device.type == "cuda":
            self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._next: MicroBatch | None = None
        self._made: tuple[int, Inputs] | None = None  # for the micro batch with that `first`

    def inputs(self, own: Sequence[MicroBatch], following: MicroBatch | None) -> Iterator[Inputs]:
        """The inputs of a step's micro batches. following: the one that comes after them; None
        where it is not known.

        Dropout is seeded by the index of a micro batch's first sample, so that it depends neither
        on the rank that computes it nor on what was computed before.
        """
        for micro_batch, self._next in zip(own, [*own[1:], following], strict=True):
            bits = raw_bits(self._seed, "dropout", micro_batch.first, 1, 1)
            torch.manual_seed(int(bits[0, 0] >> 1))
            yield self._take(micro_batch)

    def make_ahead(self) -> None:
        """Between the forward and the backward pass of a micro batch: begin to make the inputs of
        the next one, once the device has done what it was given so far."""
        if not self._ahead or self._next is None:
            return
        if self._beside:
            self._beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._beside):
            self._made = self._next.first, self._make(self._next)

    def _take(self, micro_batch: MicroBatch) -> Inputs:
        """The inputs of a micro batch, whether they were made ahead or not. What was made for
        another one, as before a rewind, is dropped."""
        made, self._made = self._made, None
        if made is None or made[0] != micro_batch.first:
            return self._make(micro_batch)
        inputs = made[1]
        if self._beside:
            here = torch.cuda.current_stream()
            here.wait_stream(self._beside)
            for value in inputs.values():
                if isinstance(value, Tensor):
                    value.record_stream(here)  # else its memory may be given away in use
        return inputs

    def _make(self, micro_batch: MicroBatch) -> Inputs:
        return self._objective.inputs(micro_batch.batch, micro_batch.step, self._device)
