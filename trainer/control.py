"""What ranks agree on beside gradients, over gloo on the CPU: one small exchange at each step border."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from model.errors import ADDPError
from trainer.config import RunConfig

T = TypeVar("T")
_LONG = 7 * 24 * 3600.0  # where hangs are not to be ended


class Flags(NamedTuple):
    """stop: somebody was asked to. waiting: for data. writing: files of a checkpoint. failed: an exit code."""

    stop: bool = False
    waiting: bool = False
    writing: bool = False
    failed: int = 0


class Control:
    """A process group of its own, so that it never meets the gradients' collectives."""

    def __init__(self, config: RunConfig) -> None:
        seconds = config.health.hang + 60 if config.health.hang else _LONG
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def agree(self, flags: Flags) -> Flags:
        """The largest of each flag over all ranks."""
        values = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(values, dist.ReduceOp.MAX, self._group)
        stop, waiting, writing, failed = values.tolist()
        return Flags(bool(stop), bool(waiting), bool(writing), failed)

    def mean(self, values: list[float]) -> list[float]:
        """Of each value over all ranks, the same bits on all of them."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return (total / self.world_size).tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, self._group)
        return found

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of `work` on rank 0, on all ranks; or its ADDPError, raised on all ranks."""
        message: list[Any] = [None, None]
        if self.rank == 0:
            try:
                message[0] = work()
            except ADDPError as error:
                message[1] = error
        dist.broadcast_object_list(message, 0, self._group)
        if message[1] is not None:
            raise message[1]
        result: T = message[0]
        return result

    def barrier(self) -> None:
        self.agree(Flags())
