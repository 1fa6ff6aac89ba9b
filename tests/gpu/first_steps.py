"""The first steps of a recipe at its own sizes, without checkpoints, in a process whose memory is
theirs alone.

    python -m tests.gpu.first_steps CONFIG [key=value ...]

Prints one line of JSON, {"fits": false} where the device's memory is too small for batch.micro. The
global batch is one micro batch: accumulation takes no more memory.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import torch

from model.attention import in_use
from model.transformer import recompute_blocks
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.engine.engine import Engine, start_distributed
from trainer.objectives.registry import make_objective
from trainer.timing import Stopwatch

TIMED = 3  # steps after the first, which also chooses kernels


def first_steps(config: RunConfig) -> dict[str, Any]:
    _, world_size, device = start_distributed()
    Collectives()  # whose process group a run has, too
    micro = config.batch.micro
    torch.manual_seed(config.seed)
    objective = make_objective(config)
    recompute_blocks(objective.network, config.recompute_every)
    engine = Engine(objective.network, config, 1, world_size)
    clock = Stopwatch(False)

    def step(number: int) -> tuple[float, float, bool]:
        batch = objective.batch(number % objective.epochs.steps_per_epoch, 0, micro)
        result = engine.optimizer_step(iter([objective.inputs(batch, number, device)]), 1e-6, clock)
        return float(result.loss), float(result.norm), bool(result.applied)

    losses = [step(0)[0]]
    started = time.perf_counter()
    for number in range(1, 1 + TIMED):
        loss, norm, applied = step(number)
        losses.append(loss)
    rate = TIMED * micro / (time.perf_counter() - started)
    operations, peak = costs.image_operations(config).total, costs.device_peak()
    on_gpu = device.type == "cuda"
    report = {
        "fits": True,
        "micro": micro,
        "losses": losses,
        "norm": norm,
        "applied": applied,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "estimated_gib": costs.rank_memory(config, config.zero_stage, world_size).total / 2**30,
        "images_per_second": rate,
        "tflops": rate * operations / 1e12,
        "mfu": rate * operations / peak if peak else None,
        "attention": in_use(device.type),
    }
    objective.close()
    engine.close()
    return report


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        found = first_steps(load_config(sys.argv[1], sys.argv[2:]))
    except torch.OutOfMemoryError:
        found = {"fits": False}
    print(json.dumps(found), flush=True)
