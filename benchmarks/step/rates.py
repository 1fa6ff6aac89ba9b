"""What a machine reaches at its best: products of large matrices, and copies of large tensors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.step.stages import Stages
from model.precision import CPUINFO
from trainer import costs

_SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices that are multiplied
_COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes, far above any cache
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that decide how fast a CPU is
_LEAST = 5  # trials


class Rates(NamedTuple):
    """product: the best rate of products, in operations a second. sustained: its median; an H200's
    was 14 % below its best. bandwidth: bytes a second that a copy reads and writes. sheet: what the
    maker says of bf16 products, None where that is not known."""

    product: float
    sustained: float
    bandwidth: float
    sheet: float | None


def machine_rates(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> Rates:
    """Measure products of `dtype`, and copies, for so many seconds each."""
    side = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = _trials(device, lambda: a @ b, seconds)
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = _trials(device, lambda: target.copy_(source), seconds)
    return Rates(
        2 * side**3 / min(products),
        2 * side**3 / statistics.median(products),
        2 * source.numel() / min(copies),
        costs.device_peak() if device.type == "cuda" else None,
    )


def _trials(device: torch.device, call: Callable[[], object], seconds: float) -> list[float]:
    stages, taken, until = Stages(device), [], time.perf_counter() + seconds
    call()
    while time.perf_counter() < until or len(taken) < _LEAST:
        first = stages.mark()
        call()
        taken.append(stages.between(first, stages.mark()))
    return taken


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with what it has of vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return "unknown CPU"
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    has = [
        f for f in ("avx512_bf16", "amx_bf16", "avx512f", "avx2") if f in fields.get("flags", "")
    ]
    return " ".join([fields.get("model name", "unknown CPU"), *has])
