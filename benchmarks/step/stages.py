"""The clock of a step's stages: CUDA events around the calls that make them up, or the host's
clock."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any, NamedTuple, Protocol

import torch


class Follower(Protocol):
    """What is told of calls that belong to a stage."""

    def follow(self, owner: Any, method: str, stage: str) -> None:
        """Count every call of owner.method from now on to that stage."""


class Stages:
    """Seconds of each stage of a step. What is called within a stage and belongs to another counts
    to that one alone.

    by_cpu: count CPU seconds of all threads instead of seconds, where other work disturbs the
    clock. On CUDA it changes nothing.
    """

    def __init__(self, device: torch.device, *, by_cpu: bool = False) -> None:
        self._on_cuda = device.type == "cuda"
        self._clock = time.process_time if by_cpu else time.perf_counter
        self._spans: list[_Span] = []
        self._open: list[str] = []  # the stages in which the next call lies

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

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            within = self._open[-1] if self._open else None
            self._open.append(stage)
            first = self.mark()
            result = function(*args, **kwargs)
            self._spans.append(_Span(stage, within, first, self.mark()))
            self._open.pop()
            return result

        setattr(owner, method, timed)

    def take(self, first: Any, last: Any) -> dict[str, float]:
        """Return the seconds of each stage of the step between two marks, of what lies between the
        stages (`rest`), and of the whole (`step`). The next step begins."""
        seconds: dict[str, float] = defaultdict(float)
        for span in self._spans:
            taken = self.between(span.first, span.last)
            seconds[span.stage] += taken
            if span.within is not None:
                seconds[span.within] -= taken
        self._spans.clear()
        whole = self.between(first, last)
        return {**seconds, "rest": whole - sum(seconds.values()), "step": whole}


class _Span(NamedTuple):
    """A call of a stage between two marks. within: the stage that it was called in."""

    stage: str
    within: str | None
    first: Any
    last: Any
