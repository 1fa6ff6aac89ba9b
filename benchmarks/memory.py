"""Measures what recomputing blocks saves in memory and costs in time, and plans micro batches.

    python -m benchmarks.memory --size demo --micro 8       # on a CPU
    python -m benchmarks.memory --size base                 # on a GPU, the recipe's micro batch
    python -m benchmarks.memory --size large --plan 40 80   # what fits in so many GiB

A policy is a value of `recompute_every`: 0 (none), 2 (every second block), 1 (all). Each is
measured in a process of its own: steps of the real engine on random tokens, without frozen
networks. saved: bytes of the tensors that the forward pass keeps for the backward pass, by
PyTorch's hooks; weights are left out. peak: by CUDA's allocator; on a CPU, how much the process's
memory grew over the steps. time: the median of the steps, in wall and CPU seconds; on a GPU the
device is waited for. The processes run one after another, `--repeats` times in turn. --plan goes by
what `addp plan` counts, frozen networks and all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from model.addp import ADDP
from model.transformer import recompute_blocks
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.engine.engine import Engine, start_distributed
from trainer.recipes import recipe
from trainer.timing import Stopwatch

POLICIES = {"none": 0, "every second block": 2, "all blocks": 1}
VISIBLE = 0.5  # share of the tokens that the decoder sees, the largest that a run draws
WARM_UP = 1  # steps that are not counted
MIB, GIB = 2**20, 2**30


def configured(size: str, micro: int | None, every: int, overrides: list[str]) -> RunConfig:
    published = size in ("base", "large")
    names = ("addp", "predictor") if published else ("addp", "predictor", "tokenizer")
    settings = [f"{name}.sizes.size={size}" for name in names] + [f"recompute_every={every}"]
    if micro:
        settings += [f"batch.micro={micro}", f"batch.global_batch={micro}"]
    return load_config(recipe(size if published else "base"), [*settings, *overrides])


def resident_peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Saved:
    """Counts the bytes that a forward pass keeps: each storage once, and no weight."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def measure(config: RunConfig, steps: int) -> dict[str, Any]:
    """Return the memory and the time of a step under the configured policy."""
    _, world_size, device = start_distributed()
    torch.manual_seed(0)
    g, micro = config.geometry, config.batch.micro
    with device:
        network = ADDP(g, config.addp.sizes)
        ids = torch.randint(g.codebook_size, (micro, g.tokens))
        target = torch.rand(micro, g.tokens, g.codebook_size).softmax(-1)
        images = torch.rand(micro, 3, g.image_size, g.image_size)
    visible = int(VISIBLE * g.tokens)
    inputs = {
        "images": images,
        "ids": ids,
        "mask": (torch.arange(g.tokens, device=device) >= visible).expand(micro, -1),
        "target": target,
        "smoothing": config.label_smoothing,
        "visible_count": visible,
    }
    recompute_blocks(network, config.recompute_every)
    engine = Engine(network, config, 1, world_size)
    saved, before = Saved(network), resident_peak()
    walls, cpus = [], []
    for number in range(WARM_UP + steps):
        wall, cpu = time.perf_counter(), time.process_time()
        engine.optimizer_step(iter([inputs]), 1e-5, Stopwatch(False))
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    on_cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_cuda else resident_peak() - before
    # By itself: what the hooks keep would be part of the peak.
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        engine._engine(**inputs)
    engine.close()
    return {
        "saved_mib": saved.bytes / MIB,
        "peak_mib": peak / MIB,
        "seconds": statistics.median(walls),
        "cpu_seconds": statistics.median(cpus),
    }


def in_a_process(arguments: list[str], every: int) -> dict[str, Any]:
    """Measure one policy in a process of its own, and return what it printed."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments, "--every", str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def largest_micro(options: argparse.Namespace, every: int, gib: float) -> int:
    """Return the largest micro batch for which `addp plan` counts at most so many GiB, in the
    recipe's ZeRO stage on 32 ranks; 0 where one image is too much."""

    def fits(micro: int) -> bool:
        config = configured(options.size, micro, every, options.overrides)
        # On every rank a step is one micro batch.
        batch = config.batch.model_copy(update={"global_batch": 32 * micro})
        config = config.model_copy(update={"batch": batch})
        return costs.rank_memory(config, config.zero_stage, 32).total <= gib * GIB

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--size", default="base", choices=["base", "large", "demo", "tiny"])
    parser.add_argument("--micro", type=int, help="images of a step, else the recipe's")
    parser.add_argument("--steps", type=int, default=5, help="of a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each policy")
    parser.add_argument("--plan", type=float, nargs="+", metavar="GIB", help="only plan for these")
    parser.add_argument("--every", type=int, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("overrides", nargs="*", help="key=value of the run's configuration")
    options = parser.parse_intermixed_args()
    if options.every is not None:
        config = configured(options.size, options.micro, options.every, options.overrides)
        print(json.dumps(measure(config, options.steps)))
        return
    if options.plan:
        for policy, every in POLICIES.items():
            found = {f"{gib:g}_gib": largest_micro(options, every, gib) for gib in options.plan}
            print(json.dumps({"size": options.size, "policy": policy, **found}), flush=True)
        return
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"torch": torch.__version__, "device": device, "cores": cores}), flush=True)
    arguments = [*options.overrides, "--size", options.size, "--steps", str(options.steps)]
    arguments += ["--micro", str(options.micro)] if options.micro else []
    rows: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    for _ in range(options.repeats):
        for policy, every in POLICIES.items():
            rows[policy].append(in_a_process(arguments, every))
    medians = {
        policy: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for policy, found in rows.items()
    }
    base = medians["none"]
    for policy, row in medians.items():
        shown = {key: round(value, 4 if "seconds" in key else 1) for key, value in row.items()}
        ratios = {
            "saved_ratio": round(row["saved_mib"] / base["saved_mib"], 3),
            "time_ratio": round(row["seconds"] / base["seconds"], 3),
            "cpu_time_ratio": round(row["cpu_seconds"] / base["cpu_seconds"], 3),
        }
        print(json.dumps({"policy": policy, **shown, **ratios}), flush=True)


if __name__ == "__main__":
    main()
