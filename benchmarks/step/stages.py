"""The clock of a step's stages: CUDA events around the calls that make them up, or the host's
clock."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Protocol

import torch


class Follower(Protocol):
    """What is told of calls that belong to a stage."""

    def follow(self, owner: Any, method: str, stage: str) -> None:
        """Count every call of owner.method from now on to that stage."""


class Stages:
    """Seconds of each stage of a step; no stage lies in another.

    by_cpu: count CPU seconds of all threads instead of seconds, where other work disturbs the
    clock. On CUDA it changes nothing.
    """

    def __init__(self, device: torch.device, *, by_cpu: bool = False) -> None:
        self._on_cuda = device.type == "cuda"
        self._clock = time.process_time if by_cpu else time.perf_counter
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """Return this moment; on CUDA, the one at which the device gets here."""
        if not self._on_cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Return the seconds between two marks; on CUDA, wait for the second one."""
        if not self._on_cuda:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last) / 1000)

    def follow(self, owner: Any, method: str, stage: str) -> None:
        """Count every call of owner.method from now on to that stage."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            first = self.mark()
            result = function(*args, **kwargs)
            self._spans.append((stage, first, self.mark()))
            return result

        setattr(owner, method, timed)

    def take(self, first: Any, last: Any) -> dict[str, float]:
        """Return the seconds of each stage of the step between two marks, of what lies between the
        stages (`rest`), and of the whole (`step`). The next step begins."""
        seconds: dict[str, float] = defaultdict(float)
        for stage, start, end in self._spans:
            seconds[stage] += self.between(start, end)
        self._spans.clear()
        whole = self.between(first, last)
        return {**seconds, "rest": whole - sum(seconds.values()), "step": whole}
