"""What ranks agree on beside gradients, over gloo on the CPU: one small exchange at each step
border."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from data_pipeline.storage import StorageError
from model.errors import ADDPError
from model.precision import keep_float32
from trainer.distributed.meeting import LONG
from trainer.host_memory import keep_freed_memory

T = TypeVar("T")
_LOST = re.compile(  # what gloo and NCCL say of a peer that is gone
    r"gloo.*(closed|reset|refused|timed out|broken pipe)|connection (closed|reset) by|remote "
    r"process exited|"
    r"communicator was aborted|recvValue failed|failed to recv",
    re.IGNORECASE | re.DOTALL,
)
# Seconds in which all hosts see what one has written: NFS clients remember names and sizes for so
# long.
SIGHT = 60.0
_LOOKS = 0.5  # seconds between looks


def own_device() -> torch.device:
    """This rank's GPU, or the CPU; float32 is float32 on it."""
    keep_float32()
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    keep_freed_memory()
    return torch.device("cpu")


def is_lost_rank(error: BaseException) -> bool:
    """Whether it says that another rank is gone, not that something is wrong here."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def is_late(error: BaseException) -> bool:
    """Of those, whether the other one did not answer in time."""
    return (
        is_lost_rank(error)
        and re.search(r"timed out|timeout", str(error), re.IGNORECASE) is not None
    )


class Flags(NamedTuple):
    """stop: somebody was asked to. waiting: for data. writing: files of a checkpoint. failed: an
    exit code."""

    stop: bool = False
    waiting: bool = False
    writing: bool = False
    failed: int = 0


class Collectives:
    """A process group of its own, so that it never meets the gradients' collectives."""

    def __init__(self, patience: float = LONG) -> None:
        """patience: seconds that an exchange may take, and so all that ranks do between two of
        them."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
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

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, self._group)
        return found

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on rank 0; nothing on the others."""
        found: list[Any] = [None] * self.world_size if self.rank == 0 else []
        dist.gather_object(value, found or None, 0, self._group)
        return found

    def divide(
        self, count: int, work: Callable[[int], T], done: Callable[[], None] = lambda: None
    ) -> list[T]:
        """work(0) .. work(count-1), each on one rank; all results, in their order, on rank 0, none
        on the others.

        done: called on this rank after each of its own.
        """
        mine = []
        for number in range(self.rank, count, self.world_size):
            mine.append((number, work(number)))
            done()
        return [
            result
            for _, result in sorted(
                (r for part in self.collect(mine) for r in part), key=lambda r: r[0]
            )
        ]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """The result of `work` on rank 0, on all ranks; or its ADDPError, raised on all ranks, a
        StorageError for what the operating system refused."""
        message: list[Any] = [None, None]
        if self.rank == 0:
            try:
                message[0] = work()
            except ADDPError as error:
                message[1] = error
            except OSError as error:
                message[1] = StorageError(str(error))
        dist.broadcast_object_list(message, 0, self._group)
        if message[1] is not None:
            raise message[1]
        result: T = message[0]
        return result

    def until_all(self, sees: Callable[[], bool]) -> list[int]:
        """All ranks together: look at shared storage until every rank sees what it should. Returns
        those that do not within `SIGHT` seconds."""
        deadline = time.monotonic() + SIGHT
        while True:
            blind = [rank for rank, seen in enumerate(self.all_gather(sees())) if not seen]
            if not blind or self.broadcast_from_rank0(lambda: time.monotonic() > deadline):
                return blind
            time.sleep(_LOOKS)

    def barrier(self) -> None:
        self.agree(Flags())
