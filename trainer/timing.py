"""Where the time of a step goes, and which rank the others wait for."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import torch

from trainer.distributed.collectives import Collectives

# A straggler's own time is so many times that of the median rank, and longer by so much of a step.
_STRAGGLER = 1.25
_NOTICEABLE = 0.05


class Stopwatch:
    """Adds up the seconds between `start` and `stop`. On CUDA it does so by events, and waits for
    the device in `take` alone."""

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = self._started = 0.0

    def start(self) -> None:
        """Begin a span that counts."""
        self._started = time.perf_counter()
        if self._on_cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            self._events.append((first, last))

    def stop(self) -> None:
        """End the span."""
        if self._on_cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """Return the sum so far, and start again from 0."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StepTimes:
    """The times of the steps since the last metric line, on this rank. The first line counts from
    when the object is made."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, seconds: float, waited: float) -> None:
        """Count a step. seconds: the whole of it; waited: how much of that it waited for data."""
        self._steps.append(seconds)
        self._waited += waited

    def summary(self, own: float, collectives: Collectives) -> dict[str, Any]:
        """All ranks together: the part of a metric line that is about time and memory. It starts
        again with no steps. The mean of a step is by the time since the last line, whatever was
        done in it: only so do the steps of a device that runs behind its host count in full.

        own: seconds in forward passes and frozen networks, in which a rank waits for no other. A
        straggler is a rank whose own time is well above that of the median rank: the others wait
        for it in every step.
        """
        steps, now = np.array(self._steps), time.perf_counter()
        elapsed, self._since = now - self._since, now
        mean = elapsed / len(steps)
        own_step = (own + self._waited) / len(steps)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        on_device = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        ranks = np.array(
            collectives.all_gather((own_step, self._waited / elapsed, memory, on_device))
        )
        slowest = int(ranks[:, 0].argmax())
        middle = float(np.median(ranks[:, 0]))
        slow = ranks[slowest, 0] > max(_STRAGGLER * middle, middle + _NOTICEABLE * mean)
        self._steps, self._waited = [], 0.0
        return {
            "seconds_per_step": mean,
            "seconds_per_step_p95": float(np.quantile(steps, 0.95)),
            "data_wait": float(ranks[:, 1].max()),
            "rank_seconds_p50": middle,
            "rank_seconds_p95": float(np.quantile(ranks[:, 0], 0.95)),
            "rank_seconds_max": float(ranks[slowest, 0]),
            "straggler": slowest if slow else None,
            "memory_gib": float(ranks[:, 2].max()),
            "device_memory_gib": float(ranks[:, 3].max()),
        }
