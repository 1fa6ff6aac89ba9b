"""A thread reads data ahead of the steps, so that waiting for them can be watched, and given up."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from model.errors import ADDPError
from trainer.objectives.base import Objective


def failure(future: Future[Any]) -> ADDPError | None:
    """The error of a finished fetch that a user can mend; None where there is none. Raises any
    other error."""
    error = future.exception() if future.done() else None
    if error is not None and not isinstance(error, ADDPError):
        raise error
    return error


class Prefetch:
    """The batches of this rank: the micro batches of its slice of a step's global batch.

    offsets: where each micro batch begins in the global batch.
    """

    def __init__(self, objective: Objective, rank: int, accumulation: int, micro: int) -> None:
        self._objective, self._micro = objective, micro
        self.offsets = [(rank * accumulation + number) * micro for number in range(accumulation)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._futures: dict[int, Future[list[Any]]] = {}

    def get(self, steps: Sequence[int]) -> list[Future[list[Any]]]:
        """The batches of data steps, which are fetched in this order. What was fetched for others
        is dropped."""
        for other in [step for step in self._futures if step not in steps]:
            self._futures.pop(other).cancel()
        for step in steps:
            if step not in self._futures:
                self._futures[step] = self._thread.submit(self._fetch, step)
        return [self._futures[step] for step in steps]

    def _fetch(self, step: int) -> list[Any]:
        return [self._objective.batch(step, offset, self._micro) for offset in self.offsets]

    def close(self) -> None:
        """End the thread, without waiting for a batch that does not come."""
        self._thread.shutdown(wait=False, cancel_futures=True)
