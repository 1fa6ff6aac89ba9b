"""Where the time of steps goes, and which rank the others wait for."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import torch

from trainer.distributed.collectives import Collectives

_STRAGGLER = 1.25  # times the median rank's own time,
_NOTICEABLE = 0.05  # and so much of a step more than it


class Stopwatch:
    """Seconds between `start` and `stop`, added up. On CUDA by events, which wait for nothing until
    `take`."""

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()
        if self._on_cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            self._events.append((first, last))

    def stop(self) -> None:
        if self._on_cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The sum, which starts again from 0."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StepTimes:
    """Of the steps since the last metric line, on this rank."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._waited = 0.0

    def add(self, seconds: float, waited: float) -> None:
        """seconds: of the whole step; waited: of these, for data."""
        self._steps.append(seconds)
        self._waited += waited

    def summary(self, own: float, collectives: Collectives) -> dict[str, Any]:
        """All ranks together. own: seconds in forward passes and frozen networks, in which a rank
        waits for no other.

        A straggler is a rank whose own time is well above the median rank's; the others wait for it
        in every step.
        """
        steps = np.array(self._steps)
        mean = float(steps.mean())
        own_step = (own + self._waited) / len(steps)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        on_device = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        ranks = np.array(
            collectives.all_gather((own_step, self._waited / steps.sum(), memory, on_device))
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
