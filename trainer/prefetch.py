"""One step's data ahead of the run, by a thread, so that waiting for data can be watched and
left."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from model.errors import ADDPError
from trainer.objectives.base import Objective


def failure(future: Future[Any]) -> ADDPError | None:
    """What a finished fetch failed of, if the user can mend it; raises what is no such error."""
    error = future.exception() if future.done() else None
    if error is not None and not isinstance(error, ADDPError):
        raise error
    return error


class Prefetch:
    """Batches of this rank: the micro batches of its slice of a step's global batch."""

    def __init__(self, objective: Objective, rank: int, accumulation: int, micro: int) -> None:
        self._objective, self._micro = objective, micro
        self.parts = [
            (rank * accumulation + part) * micro for part in range(accumulation)
        ]  # offsets in the batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._futures: dict[int, Future[list[Any]]] = {}

    def get(self, step: int, ahead: int | None) -> Future[list[Any]]:
        """The batches of a data step; those of `ahead` are started behind them."""
        for other in [s for s in self._futures if s not in (step, ahead)]:
            self._futures.pop(other).cancel()
        for wanted in (step, ahead):
            if wanted is not None and wanted not in self._futures:
                self._futures[wanted] = self._thread.submit(self._fetch, wanted)
        return self._futures[step]

    def _fetch(self, step: int) -> list[Any]:
        return [self._objective.batch(step, offset, self._micro) for offset in self.parts]

    def close(self) -> None:
        """Does not wait for a batch that does not come."""
        self._thread.shutdown(wait=False, cancel_futures=True)
