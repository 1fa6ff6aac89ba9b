"""Whether a run computes with compiled networks: what its configuration asks for, and what this
machine can do.

Everything that is compiled is tried on one step, before the engine takes the networks:

    blank batch -> frozen networks -> copy of the trained network -> loss -> backward

So a compiler that is missing or broken costs a line and no run, no step waits for a compilation,
and every start of a run compiles for the same shapes in the same order. That makes the same
kernels, while those that are made for whatever a run meets first would round differently after
each resume.

ZeRO-3 is an exception: its first step compiles every transformer block again, and a failure there
ends the run. DeepSpeed changes what the graphs of the trial depend on: it puts a function of its
own in place of `torch.nn.functional.linear`, another class in place of each dictionary of
parameters, and attributes on the parameters. So `compile: auto` leaves ZeRO-3 alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from model.compiling import compilations, torch_compiler
from model.errors import in_one_line
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.engine.precision import MODES
from trainer.objectives.base import Objective
from trainer.objectives.counting import mean_ratio

# Steps of the shortest run that `compile: auto` compiles. An H200 saves 37 to 49 ms of a step
# (docs/gpu.md), which makes 74 to 98 s; what compiling takes it was not measured.
WORTH_STEPS = 2000


def wants_compiling(config: RunConfig, device: torch.device, total: int) -> bool:
    """Whether `compile` asks for it. auto: on GPUs, in runs of 2,000 steps or more, and not in
    ZeRO-3, where the trial does not show that the first step compiles. total: the steps of the
    whole run, so that each of its starts decides alike."""
    if config.compile == "auto":
        return device.type == "cuda" and total >= WORTH_STEPS and config.zero_stage < 3
    return config.compile == "on"


def compile_networks(
    objective: Objective,
    config: RunConfig,
    device: torch.device,
    collectives: Collectives,
    *,
    total: int,
    say: Callable[[str], None],
) -> RunConfig:
    """All ranks together: compile what is worth it of the networks, on all ranks or, where it fails
    on one, on none. Returns the configuration with what came of it in `compile`: on or off."""
    compiled = False
    if wants_compiling(config, device, total):
        compiled = _compile(objective, config, device, collectives, say)
    return config.model_copy(update={"compile": "on" if compiled else "off"})


def _compile(
    objective: Objective,
    config: RunConfig,
    device: torch.device,
    collectives: Collectives,
    say: Callable[[str], None],
) -> bool:
    started, before, reason = time.monotonic(), compilations(), ""
    try:
        if not objective.use_compiler(torch_compiler(deterministic=config.deterministic)):
            return False
        try_step(objective, config, device)
    except Exception as error:  # noqa: BLE001 - whatever it is, compiling does not work here
        reason = in_one_line(error, named=True)
    reasons = collectives.all_gather(reason)
    failed = next((rank for rank, reason in enumerate(reasons) if reason), None)
    if failed is None:
        graphs = compilations() - before
        say(f"the networks are compiled: {graphs} graphs in {time.monotonic() - started:.0f} s")
        return True
    objective.use_compiler(None)
    torch.compiler.reset()
    where = f" on rank {failed}" if len(reasons) > 1 else ""
    say(f"compiling failed{where}, and the networks compute eagerly: {reasons[failed]}")
    return False


def try_step(objective: Objective, config: RunConfig, device: torch.device) -> None:
    """Compute a loss and its gradients as the run will do, on a copy of the trained network and
    without data. No generator of random numbers moves."""
    mode, on_cuda = MODES[config.precision], device.type == "cuda"
    network = copy.deepcopy(objective.network).to(device, getattr(torch, mode.weights)).train()
    autocast: AbstractContextManager[Any] = (
        torch.autocast(device.type, getattr(torch, mode.products)) if mode.mixed else nullcontext()
    )
    with torch.random.fork_rng([device] if on_cuda else []):
        batch = objective.blank_batch(config, config.batch.micro, mean_ratio())
        inputs = objective.inputs(batch, 0, device)
        with autocast:
            loss = network(**inputs)
        loss.backward()
    if on_cuda:
        torch.cuda.synchronize(device)
        del network, inputs, loss
        torch.cuda.empty_cache()
