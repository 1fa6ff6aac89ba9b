"""What ranks tell each other beside gradients, over gloo on the CPU: flags at each step border,
losses, files of checkpoints, results of an evaluation."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.storage import StorageError
from model.errors import ADDPError
from model.precision import keep_float32
from trainer.distributed.meeting import LONG
from trainer.host_memory import keep_freed_memory

T = TypeVar("T")
_LOST = re.compile(  # what gloo and NCCL say of a peer that is gone
    r"gloo.*(closed|reset|refused|timed out|broken pipe)|connection (closed|reset) by"
    r"|remote process exited|communicator was aborted|recvValue failed|failed to recv",
    re.IGNORECASE | re.DOTALL,
)
_LATE = re.compile(r"timed out|timeout", re.IGNORECASE)
# Seconds within which all hosts see what one has written: for so long NFS clients remember names
# and sizes.
SIGHT = 60.0
_LOOKS = 0.5  # seconds between looks


def own_device() -> torch.device:
    """Return this rank's GPU, or the CPU, once this process is set up to compute on it: float32
    is not rounded to TF32, and memory that is freed on the CPU is kept."""
    keep_float32()
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    keep_freed_memory()
    return torch.device("cpu")


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, and not that something is wrong here."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def is_late(error: BaseException) -> bool:
    """Whether an error says that another rank is gone since it did not answer in time."""
    return is_lost_rank(error) and _LATE.search(str(error)) is not None


class Flags(NamedTuple):
    """What a rank says at a border. stop: it was asked to stop. waiting: it lacks data, or waits
    for uploads. writing: its file of a checkpoint is not written yet. failed: the exit code of an
    error after which it cannot go on; 0 without one."""

    stop: bool = False
    waiting: bool = False
    writing: bool = False
    failed: int = 0


class Agreement:
    """An exchange of flags that is under way."""

    def __init__(self, values: Tensor, work: dist.Work) -> None:
        self._values, self._work = values, work

    def result(self) -> Flags:
        """Wait until all ranks have said theirs. The largest of each flag, the same on all of
        them."""
        self._work.wait()
        stop, waiting, writing, failed = self._values.tolist()
        return Flags(bool(stop), bool(waiting), bool(writing), failed)


class Collectives:
    """Exchanges of all ranks, in a process group of their own, so that they never meet the
    collectives of the gradients.

    Each method is called on all ranks, in the same order. It raises RuntimeError where a rank is
    gone or does not answer in time (`is_lost_rank`).
    """

    def __init__(self, timeout: float = LONG) -> None:
        """timeout: seconds that an exchange may take, and so what ranks do between two of them."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def begin_to_agree(self, flags: Flags) -> Agreement:
        """Tell all ranks this rank's flags, without waiting for theirs. Other exchanges may come
        before the result is asked for."""
        values = torch.tensor([int(flag) for flag in flags])
        work = dist.all_reduce(values, dist.ReduceOp.MAX, self._group, async_op=True)
        return Agreement(values, work)

    def agree(self, flags: Flags) -> Flags:
        """The largest of each flag over all ranks, the same on all of them."""
        return self.begin_to_agree(flags).result()

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over all ranks, in float64, the same bits on all of them."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return (total / self.world_size).tolist()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of each value over all ranks, on the device of `values`, the same bits on all of
        them."""
        if self.world_size == 1:
            return values
        total = values.to("cpu", copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(values.device)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on all of them."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._group)
        return values

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on rank 0; an empty list on the others."""
        values: list[Any] = [None] * self.world_size if self.rank == 0 else []
        dist.gather_object(value, values or None, 0, self._group)
        return values

    def divide(
        self, count: int, work: Callable[[int], T], done: Callable[[], None] = lambda: None
    ) -> list[T]:
        """Share work(0) .. work(count-1) out among the ranks. Returns all results, in their order,
        on rank 0; an empty list on the others.

        done: called on a rank after each piece of its own.
        """
        mine = []
        for number in range(self.rank, count, self.world_size):
            mine.append((number, work(number)))
            done()
        numbered = [result for results in self.collect(mine) for result in results]
        return [result for _, result in sorted(numbered, key=lambda pair: pair[0])]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0, and give its result to all ranks. An ADDPError of it is raised on
        all of them, and what the operating system refused as a StorageError."""
        answer: list[Any] = [None, None]  # the result, and the error
        if self.rank == 0:
            try:
                answer[0] = work()
            except ADDPError as error:
                answer[1] = error
            except OSError as error:
                answer[1] = StorageError(str(error))
        dist.broadcast_object_list(answer, 0, self._group)
        result, raised = answer
        if raised is not None:
            raise raised
        return cast(T, result)

    def until_all(self, sees: Callable[[], bool]) -> list[int]:
        """Look at shared storage, again and again, until every rank sees what it should. Returns
        the ranks that do not within `SIGHT` seconds."""
        deadline = time.monotonic() + SIGHT
        while True:
            blind = [rank for rank, seen in enumerate(self.all_gather(sees())) if not seen]
            if not blind or self.broadcast_from_rank0(lambda: time.monotonic() > deadline):
                return blind
            time.sleep(_LOOKS)

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.agree(Flags())
