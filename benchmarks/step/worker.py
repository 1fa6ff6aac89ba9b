"""A process of its own for each variant, so that neither memory nor compiled code nor a choice of
kernels of one touches another. It takes steps when it is asked to, and waits meanwhile."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.step.stages import Stages
from benchmarks.step.variants import OurStep, ReferenceStep, Step, drawn_masks
from model.attention import in_use
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.recipes import recipe

_PUBLISHED = ("base", "large")


class Variant(NamedTuple):
    """What is measured. name: in the rows. size: of all networks. overrides: of the run's
    configuration."""

    name: str
    reference: bool
    size: str
    micro: int | None
    overrides: tuple[str, ...]

    def config(self) -> RunConfig:
        """Return the configuration of a run of the variant. Raises ConfigError."""
        published = self.size in _PUBLISHED
        sections = ("addp", "predictor") if published else ("addp", "predictor", "tokenizer")
        keys = [f"{section}.sizes.size={self.size}" for section in sections]
        if self.micro:
            keys += [f"batch.micro={self.micro}", f"batch.global_batch={self.micro}"]
        return load_config(recipe(self.size if published else "base"), [*keys, *self.overrides])


class Failed(Exception):
    """A variant's process has ended with an error, which it has printed."""


class Worker:
    """A variant's process, as the program that asks it sees it."""

    def __init__(self, variant: Variant, device: str, by_cpu: bool) -> None:
        self.variant = variant
        # A forked process could not use CUDA, and would start with this one's peak of memory.
        context = multiprocessing.get_context("spawn")
        self._own, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, variant, device, by_cpu), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, question: str, *arguments: Any) -> Any:
        """Return the answer of the `_Answers` method of that name. Raises Failed."""
        try:
            self._own.send((question, arguments))
            return self._own.recv()
        except (EOFError, OSError) as error:
            raise Failed(f"the process of {self.variant.name} has ended; see above") from error

    def end(self) -> None:
        """Let the process end."""
        self._own.close()
        self._process.join()


def _serve(connection: Connection, variant: Variant, device: str, by_cpu: bool) -> None:
    answers = _Answers(variant, torch.device(device), by_cpu)
    while True:
        try:
            question, arguments = connection.recv()
        except EOFError:
            return
        answer: Callable[..., Any] = getattr(answers, question)
        connection.send(answer(*arguments))


class _Answers:
    """What the process of a variant can be asked for."""

    def __init__(self, variant: Variant, device: torch.device, by_cpu: bool) -> None:
        config = variant.config()
        self.config, self.device = config, device
        self.stages = Stages(device, by_cpu=by_cpu)
        self.variant = variant
        self.step: Step
        if variant.reference:
            self.step = ReferenceStep(config, self.stages, device)
        else:
            self.step = OurStep(config, self.stages)

    def turn(self, steps: int) -> dict[str, float]:
        """Take the first `steps` steps, and return the mean seconds of each stage; `wall` and `cpu`
        are the host's seconds and those of its threads."""
        taken = []
        for draw in range(steps):
            masks = drawn_masks(self.config, draw, self.device)
            started, used = time.perf_counter(), time.process_time()
            first = self.stages.mark()
            applied = self.step(masks)
            seconds = self.stages.take(first, self.stages.mark())
            seconds["wall"] = time.perf_counter() - started
            taken.append(seconds | {"cpu": time.process_time() - used})
            assert applied
        return {stage: statistics.fmean(row[stage] for row in taken) for stage in taken[0]}

    def kernels(self, count: int) -> list[dict[str, Any]]:
        """Return the kernels (on a CPU: operators) that take most of a step."""
        activity, key = torch.profiler.ProfilerActivity.CPU, "self_cpu_time_total"
        if self.device.type == "cuda":
            activity, key = torch.profiler.ProfilerActivity.CUDA, "self_device_time_total"
        masks = drawn_masks(self.config, 0, self.device)
        with torch.profiler.profile(activities=[activity]) as profile:
            self.step(masks)
        rows = [(getattr(r, key) / 1e3, r.count, r.key[:160]) for r in profile.key_averages()]
        longest = sorted(rows, reverse=True)[:count]
        return [{"kernel": name, "calls": calls, "ms": round(ms, 3)} for ms, calls, name in longest]

    def summary(self) -> dict[str, Any]:
        """Return what the process has used until now. peak_gib: of all memory that the process had
        resident, on CUDA of the device's."""
        config, on_cuda = self.config, self.device.type == "cuda"
        # A plan rehearses our networks, which the reference's process has given other operators.
        planned = not self.variant.reference and costs.rank_memory(config, config.zero_stage, 1)
        peak = torch.cuda.max_memory_allocated() if on_cuda else _peak_resident()
        return {
            "micro": config.batch.micro,
            "precision": config.precision,
            "zero_stage": config.zero_stage,
            "attention": in_use(self.device.type),
            "compilations": _compilations(),
            "peak_gib": _gib(peak),
            "reserved_gib": _gib(torch.cuda.max_memory_reserved()) if on_cuda else None,
            "planned_gib": _gib(planned.total) if planned else None,
        }


def _compilations() -> int:
    """Return how many graphs PyTorch has compiled in this process."""
    if "torch._dynamo" not in sys.modules:  # its import takes seconds
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _peak_resident() -> int:
    """Return the most bytes that this process had in memory (unlike `getrusage`, not those of the
    process that started it)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))


def _gib(size: float) -> float:
    return round(size / 2**30, 2)
