"""Faults inside a rank, at an exact point, without a hook in the product: Python announces every
file operation to its audit hooks, and these may kill the process or make the operation fail."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

EVERY = -1  # rank


@dataclass
class Sabotage:
    """At the `nth` file operation `event` on `rank` whose arguments contain all of `words` (and one
    of `any_of`): `action`, instead of it; nth 0: at every one, or at the first `times`.

    event: as in Python's table of audit events, e.g. "open", "os.rename". action: "kill", an
    errno's name, "sleep:SECONDS", "raise:WORDS" for an error that nobody foresaw, "end" of the
    thread, past all that handles errors, or "note" for a line of output, and nothing instead. nan:
    data steps whose loss is not a number, on rank 1. spikes: data steps first..last-1 whose loss is
    50 times as high.
    """

    event: str = ""
    words: tuple[str, ...] = ()
    action: str = "kill"
    nth: int = 1
    rank: int = 0
    nan: tuple[int, ...] = ()
    spikes: tuple[int, int] = (0, 0)
    # While files are written whose names hold the word, none may grow larger than so many bytes.
    limit: tuple[str, int] = ("", 0)
    slow: float = 0.0  # seconds more that rank 1 takes to make its inputs
    clock: float = 0.0  # seconds that the wall clock jumps, to and fro
    any_of: tuple[str, ...] = ("",)
    times: int = 10**9
    console: str = ""  # a file in place of standard error
    unlisted: tuple[str, ...] = ()  # words in names that folders do not list on `rank`
    unseen: tuple[
        str, ...
    ] = ()  # words in paths that `rank` does not see, at its first `times` looks
    sight: float | None = None  # seconds in which all ranks must see what one has written
    seen: int = field(default=0, init=False)

    def install(self, rank: int) -> None:
        if self.nan or self.spikes[1] or self.slow:
            self._change_inputs(rank)
        if self.clock:
            real, calls = time.time, iter(range(10**9))
            time.time = lambda: real() + (self.clock if next(calls) % 3 == 1 else -self.clock)  # type: ignore[assignment]
        if self.limit[0]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            sys.addaudithook(self._limit_files)
        if self.console:
            os.dup2(os.open(self.console, os.O_WRONLY), 2)
        if self.sight is not None:
            from trainer.distributed import collectives as collectives

            collectives.SIGHT = self.sight
        if (self.unlisted or self.unseen) and rank == self.rank:
            self._see_less()
        if self.event and self.rank in (rank, EVERY):
            sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != self.event or not all(word in str(arguments) for word in self.words):
            return
        if not any(word in str(arguments) for word in self.any_of) or self.seen >= self.times:
            return
        self.seen += 1
        if self.nth and self.seen != self.nth:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action.startswith("sleep:"):
            time.sleep(float(self.action.partition(":")[2]))
        elif self.action == "note":
            os.write(1, f"rank {os.environ['RANK']}: {event} {arguments[0]}\n".encode())
        elif self.action == "end":
            raise GeneratorExit
        elif self.action.startswith("raise:"):
            raise ZeroDivisionError(self.action.partition(":")[2])
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number))

    def _see_less(self) -> None:
        """As on a host whose view of shared storage is old."""
        stat, scandir = os.stat, os.scandir

        def look(path: Any) -> None:
            if any(word in str(path) for word in self.unseen) and self.seen < self.times:
                self.seen += 1
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

        def stat_less(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
            look(path)
            return stat(path, *arguments, **named)

        def list_less(path: Any = ".") -> Any:
            with scandir(path) as listing:
                entries = [e for e in listing if not any(word in e.name for word in self.unlisted)]
            return contextlib.nullcontext(iter(entries))

        os.stat, os.scandir = stat_less, list_less  # type: ignore[assignment]
        sys.addaudithook(
            lambda event, arguments: (
                look(arguments[0]) if event == "open" and "r" in str(arguments[1]) else None
            )
        )

    def _limit_files(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "checkpoints" in str(arguments[0]):
            most = self.limit[1] if self.limit[0] in str(arguments[0]) else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def _change_inputs(self, rank: int) -> None:
        """Through the objective's own inputs: the network multiplies its loss by `factor`."""
        from trainer.objectives import mage

        original = mage.MageObjective.inputs
        forward = mage.TokenPredictor.forward

        def inputs(own: Any, batch: Any, step: int, device: Any) -> Any:
            made = original(own, batch, step, device)
            factor = 1.0
            time.sleep(self.slow if rank == 1 else 0.0)
            if step in self.nan and rank == 1:
                factor = float("nan")
            if self.spikes[0] <= step < self.spikes[1]:
                factor = 50.0
            return {**made, "factor": factor}

        def scaled(own: Any, *arguments: Any, factor: float = 1.0, **named: Any) -> Any:
            return forward(own, *arguments, **named) * factor

        mage.MageObjective.inputs = inputs  # type: ignore[method-assign]
        mage.TokenPredictor.forward = scaled  # type: ignore[method-assign]
