"""How a run's steps map onto epochs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from model.errors import ConfigError

Tail = Literal["drop", "pad"]


class EpochSchedule(NamedTuple):
    """The steps of an epoch. What fills no global batch at its end is dropped, or padded.

    samples: of the data. global_batch: samples of a step over all ranks.
    """

    samples: int
    global_batch: int
    tail: Tail = "drop"

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return (
            -(-self.samples // self.global_batch)
            if self.tail == "pad"
            else self.samples // self.global_batch
        )

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, position) of a step's first sample."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return epoch, step * self.global_batch


def epoch_schedule(samples: int, global_batch: int, tail: Tail = "drop") -> EpochSchedule:
    """Return the schedule. Raises ConfigError if not even one global batch fits into an epoch."""
    if global_batch > samples and tail == "drop":
        raise ConfigError(
            f"global_batch = {global_batch} is larger than the data set ({samples} samples); use "
            f"at most {samples}, or more images"
        )
    return EpochSchedule(samples, global_batch, tail)
