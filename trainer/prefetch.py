"""A thread reads data one step ahead, so that waiting for them can be watched, and given up."""

from __future__ import annotations

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

    def get(self, step: int, ahead: int | None) -> Future[list[Any]]:
        """The batches of a data step. Those of the data step `ahead` are fetched behind them, and
        what was fetched for others is dropped."""
        for other in [s for s in self._futures if s not in (step, ahead)]:
            self._futures.pop(other).cancel()
        for wanted in (step, ahead):
            if wanted is not None and wanted not in self._futures:
                self._futures[wanted] = self._thread.submit(self._fetch, wanted)
        return self._futures[step]

    def _fetch(self, step: int) -> list[Any]:
        return [self._objective.batch(step, offset, self._micro) for offset in self.offsets]

    def close(self) -> None:
        """End the thread, without waiting for a batch that does not come."""
        self._thread.shutdown(wait=False, cancel_futures=True)
