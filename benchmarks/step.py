"""Measures where the time of one ADDP training step goes: by stage, with TFLOP/s, shares of peak
and memory.

    python -m benchmarks.step --size base                   # as the recipe trains
    python -m benchmarks.step --size large --kernels 30     # and its longest kernels
    CUDA_VISIBLE_DEVICES= python -m benchmarks.step --size tiny --micro 4

The real engine and networks, on the GPU or, where there is none, the CPU; random weights and
tokens. Every repeat is the same steps, with the mask ratios that a run draws, after one that is
not counted. The figure of a repeat is the mean of its steps; the median of the repeats is printed.
Stages are timed by CUDA events around the calls that make them up; `rest` is what lies between
these. of_product: share of the best rate that large products of random matrices reached before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import model.addp
from model.addp import ADDP
from model.attention import in_use
from model.denoising import FrozenNetworks
from model.masking import denoising_masks, masked_count, ratio_table
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.engine.engine import Engine, start_distributed
from trainer.objectives.addp import denoising_inputs, frozen_dtype
from trainer.recipes import recipe
from trainer.timing import Stopwatch

PRODUCT = {"cuda": 8192, "cpu": 1024}  # side of the matrices whose product is the measured peak


class Stages:
    """Seconds of each stage of a step; no stage lies in another."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def time(self, owner: Any, method: str, stage: str) -> None:
        """Count every call of owner.method from now on to that stage."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            first = self.mark()
            result = function(*args, **kwargs)
            self._spans.append((stage, first, self.mark()))
            return result

        setattr(owner, method, timed)

    def between(self, first: Any, last: Any) -> float:
        if not self._on_cuda:
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def take(self, first: Any, last: Any) -> dict[str, float]:
        """Return the seconds of each stage of the step between two marks, and of the whole; the
        next step begins."""
        seconds: dict[str, float] = defaultdict(float)
        for stage, start, end in self._spans:
            seconds[stage] += self.between(start, end)
        self._spans.clear()
        whole = self.between(first, last)
        return {**seconds, "rest": whole - sum(seconds.values()), "step": whole}


def forward_operations(config: RunConfig) -> dict[str, float]:
    """Return the operations of one image at the mean mask ratio, by stage, as `trainer.costs`
    counts them."""
    g = config.geometry
    ratio = sum(r * w for r, w in zip(*ratio_table(), strict=True))
    visible = g.tokens - masked_count(g.tokens, ratio)
    with torch.device("meta"), torch.no_grad():
        network, tokenizer = ADDP(g, config.addp.sizes), VQTokenizer(config.tokenizer.sizes)
        predictor = TokenPredictor(g, config.predictor.sizes)
        ids, mask = (torch.empty(2, g.tokens, dtype=dtype) for dtype in (torch.int64, torch.bool))
        images = torch.empty(1, 3, g.image_size, g.image_size)
        features = torch.empty(1, 1 + g.tokens, network.config.dim)
        codes = torch.empty(1, tokenizer.config.code_dim, g.grid, g.grid)
        calls: dict[str, Callable[[], Tensor]] = {
            "predictor": lambda: predictor.logits(ids, mask),
            "VQ decoder": lambda: tokenizer.decode(codes),
            "encoder": lambda: network.encode(images),
            "decoder": lambda: network.decode(features, ids[:1], mask[:1], visible),
        }
        operations = {}
        for stage, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            operations[stage] = float(counter.get_total_flops())
    forward = operations["encoder"] + operations["decoder"]
    operations["backward"] = costs.image_operations(config).trained - forward
    return operations


def products(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> tuple[float, float]:
    """Return (best, median) operations a second of large products of random matrices, one after
    another.

    The median is what a GPU sustains: an H200's was 14 % below its best.
    """
    side = PRODUCT[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    stages, rates, until = Stages(device), [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 5:
        first = stages.mark()
        a @ b
        rates.append(2 * side**3 / stages.between(first, stages.mark()))
    return max(rates), statistics.median(rates)


class Step:
    """A run's optimizer step, made of what a run is made of."""

    def __init__(self, config: RunConfig, stages: Stages) -> None:
        _, world_size, self.device = start_distributed()
        self.config, self.stages = config, stages
        torch.manual_seed(0)
        with self.device:
            tokenizer = VQTokenizer(config.tokenizer.sizes)
            predictor = TokenPredictor(config.geometry, config.predictor.sizes)
            network = ADDP(config.geometry, config.addp.sizes)
            shape = (config.batch.micro, config.geometry.tokens)
            self.ids = torch.randint(config.geometry.codebook_size, shape)
        self.frozen = FrozenNetworks(tokenizer, predictor).to(frozen_dtype(config))
        self.engine = Engine(network, config, 1, world_size)
        stages.time(predictor, "probabilities", "predictor")
        stages.time(tokenizer, "decode", "VQ decoder")
        stages.time(network, "encode", "encoder")
        stages.time(network, "decode", "decoder")
        stages.time(model.addp, "smoothed_cross_entropy", "loss")
        stages.time(self.engine._engine, "backward", "backward")
        stages.time(self.engine._engine, "step", "optimizer")

    def __call__(self, draw: int) -> dict[str, float]:
        """Do one step, and return its seconds by stage; `wall` are those of the host's clock."""
        started, first = time.perf_counter(), self.stages.mark()
        masks = denoising_masks(0, draw, 0, *self.ids.shape)
        mask_t, mask_next = masks.mask_t.to(self.device), masks.mask_next.to(self.device)
        masks = masks._replace(mask_t=mask_t, mask_next=mask_next)
        inputs = denoising_inputs(self.frozen, self.ids, masks, self.config.label_smoothing)
        result = self.engine.optimizer_step(iter([inputs]), 1e-5, Stopwatch(False))
        seconds = self.stages.take(first, self.stages.mark())
        assert result.applied
        return seconds | {"wall": time.perf_counter() - started}


def kernels(step: Step, count: int) -> list[dict[str, Any]]:
    """Return the `count` kernels (on a CPU: operators) that take most of a step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step(0)
    key = "self_device_time_total" if step.device.type == "cuda" else "self_cpu_time_total"
    timed = [(getattr(row, key) / 1e3, row.count, row.key[:160]) for row in profile.key_averages()]
    longest = sorted(timed, reverse=True)[:count]
    return [{"kernel": name, "calls": calls, "ms": round(ms, 3)} for ms, calls, name in longest]


def report(config: RunConfig, repeats: list[dict[str, float]], best: float) -> list[dict[str, Any]]:
    """Return a row for each stage and one for the step."""
    seconds = {stage: statistics.median(row[stage] for row in repeats) for stage in repeats[0]}
    operations = forward_operations(config)
    operations["step"] = operations["wall"] = costs.image_operations(config).total
    sheet, rows = costs.device_peak(), []
    for stage, taken in seconds.items():
        row: dict[str, Any] = {"stage": stage, "ms": round(taken * 1e3, 3)}
        row["of_step"] = round(taken / seconds["step"], 3)
        if stage in operations:
            rate = operations[stage] * config.batch.micro / taken
            row |= {
                "gflop_per_image": round(operations[stage] / 1e9, 3),
                "tflops": round(rate / 1e12, 3),
            }
            row["of_product"] = round(rate / best, 3)
            row["of_data_sheet"] = round(rate / sheet, 3) if sheet else None
        if stage in ("step", "wall"):
            row["images_per_second"] = round(config.batch.micro / taken, 2)
        rows.append(row)
    return rows


def gib(size: float) -> float:
    return round(size / 2**30, 2)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--size", default="base", choices=["base", "large", "demo", "tiny"])
    parser.add_argument("--micro", type=int, help="images of a step, else the recipe's")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--steps", type=int, default=8, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the longest")
    parser.add_argument("overrides", nargs="*", help="key=value of the run's configuration")
    options = parser.parse_args()
    published = options.size in ("base", "large")
    names = ("addp", "predictor") if published else ("addp", "predictor", "tokenizer")
    sizes = [f"{name}.sizes.size={options.size}" for name in names]
    if options.micro:
        sizes += [f"batch.micro={options.micro}", f"batch.global_batch={options.micro}"]
    config = load_config(
        recipe(options.size if published else "base"),
        [*sizes, f"precision={options.precision}", *options.overrides],
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    best, median = products(device, dtype)
    step = Step(config, Stages(device))
    for draw in range(options.steps):  # each length of the decoder chooses its kernels once
        step(draw)
    repeats = []
    for _ in range(options.repeats):
        steps = [step(draw) for draw in range(options.steps)]
        mean = {stage: statistics.fmean(row[stage] for row in steps) for stage in steps[0]}
        print(f"{config.batch.micro / mean['wall']:.2f} images/s", file=sys.stderr, flush=True)
        repeats.append(mean)
    cpu = platform.processor() or platform.machine()
    settings = {
        "size": options.size,
        "micro": config.batch.micro,
        "precision": config.precision,
        "zero_stage": config.zero_stage,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else cpu,
        "cores": len(os.sched_getaffinity(0)),
        "attention": in_use(device.type),
        "steps": options.steps,
        "repeats": options.repeats,
        "product_tflops_best": round(best / 1e12, 2),
        "product_tflops_median": round(median / 1e12, 2),
        "data_sheet_tflops": (costs.device_peak() or 0) / 1e12 or None,
        "peak_gib": gib(torch.cuda.max_memory_allocated()) if cuda else None,
        "reserved_gib": gib(torch.cuda.max_memory_reserved()) if cuda else None,
        "planned_gib": gib(costs.rank_memory(config, config.zero_stage, 1).total),
    }
    print(json.dumps(settings))
    for row in report(config, repeats, best):
        print(json.dumps(row))
    for row in kernels(step, options.kernels) if options.kernels else ():
        print(json.dumps(row))
    step.engine.close()


if __name__ == "__main__":
    main()
