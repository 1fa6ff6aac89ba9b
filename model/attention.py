"""Attention: one function with three backends, xformers, PyTorch's SDPA, and the formula as it is
written.

A trial, once for each kind of input, decides which of them computes: an installed xformers may have
been built for another CUDA than PyTorch, and refuses at its first call. No other file imports
xformers.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.dropout import dropout as dropped
from model.dropout import kept_elements, masked
from model.errors import ConfigError, in_one_line
from model.precision import dtype_name

log = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# Largest deviation of a backend that works, forward and backward: the largest difference to
# float64, over the largest value. Scores, weights and sums are rounded, so that some five times the
# rounding of a value is seen on CPUs. float32: also the kernels that add three TF32 products for
# one of float32, but not TF32 itself, which is off by 1e-3.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_PROBE = (2, 33, 2)  # images, positions, heads
_SCORES = 2**23  # that are in memory at a time, where nothing is kept for a backward pass


def _sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # SDPA wants heads before positions
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        if dropout:
            return _with_dropout_on_cpus(q, k, v, dropout).transpose(1, 2)
        if q.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            return _in_bf16_on_cpus(q, k, v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)


def _with_dropout_on_cpus(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """What PyTorch's SDPA computes there, with a faster dropout and few passes over the weights:
    the small tensors carry the scales."""
    weights = _weights(q, k)
    kept, scale = kept_elements(weights.shape, dropout)
    return masked(weights, kept) @ (v * scale)


def _in_bf16_on_cpus(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products and a softmax, which take half the time of SDPA's kernel for bf16 on a CPU.
    Scores are rounded to bf16; docs/performance.md has what that does to a prediction."""
    images = max(1, _SCORES // (q.shape[1] * q.shape[2] ** 2))
    if len(q) <= images:
        return _weights(q, k) @ v
    parts = (x.split(images) for x in (q, k, v))  # type: ignore[no-untyped-call]
    return torch.cat([_weights(*qk) @ v for *qk, v in zip(*parts, strict=True)])


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)


def _explicit(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).to(torch.promote_types(q.dtype, torch.float32))
    weights = dropped((scores * q.shape[-1] ** -0.5).softmax(-1), dropout)
    return torch.einsum("bhqk,bkhd->bqhd", weights.to(v.dtype), v)


def _xformers(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, p=dropout)


# Best first.
BACKENDS: dict[str, AttentionFunction] = {
    "xformers": _xformers,
    "sdpa": _sdpa,
    "explicit": _explicit,
}


class Inputs(NamedTuple):
    """The kind of input that a choice depends on. width: of a head. deterministic: whether PyTorch
    must give equal bits each time. traced: whether torch.compile goes through the function."""

    device: torch.device
    dtype: torch.dtype
    width: int
    deterministic: bool
    traced: bool = False


class Probe(NamedTuple):
    """The outcome of a trial.

    forward, backward: deviations as in `TOLERANCES`, None if nothing was computed. reason: why the
    backend is not used; empty if it works.
    """

    backend: str
    forward: float | None
    backward: float | None
    reason: str

    @property
    def works(self) -> bool:
        return not self.reason


@cache
def probe(backend: str, inputs: Inputs) -> Probe:
    """Compare a tiny forward and backward pass with explicit attention in float64 on the CPU. It
    draws nothing from PyTorch's generators, and works in any mode of gradients and precision."""
    with ExitStack() as stack:
        for mode in (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(inputs.device.type, enabled=False),
        ):
            stack.enter_context(mode)
        generator = torch.Generator().manual_seed(0)
        images, positions, heads = _PROBE
        shape = (images, positions, 3, heads, inputs.width)
        qkv, weight = (torch.randn(shape, generator=generator).to(inputs.dtype) for _ in range(2))
        expected = _both_ways(_explicit, qkv.double(), weight[:, :, 0].double())
        try:
            _refuse(backend, inputs)
            results = _both_ways(
                BACKENDS[backend], qkv.to(inputs.device), weight[:, :, 0].to(inputs.device)
            )
            forward, backward = (
                _deviation(ours, theirs) for ours, theirs in zip(results, expected, strict=True)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the backend does not work here
            return Probe(backend, None, None, in_one_line(error))
    worst, bound = max(forward, backward), TOLERANCES[inputs.dtype]
    reason = "" if worst <= bound else f"it is wrong: off by {worst:.2g}, allowed {bound:.2g}"
    return Probe(backend, forward, backward, reason)


def _both_ways(function: AttentionFunction, qkv: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (result, gradient) for q, k, v that are slices of one tensor, as in the networks."""
    qkv.requires_grad_(True)
    q, k, v = qkv.unbind(2)
    result = function(q, k, v, 0.0)
    (gradient,) = torch.autograd.grad((result * weight).sum(), qkv)
    return result.detach(), gradient


def _deviation(ours: Tensor, reference: Tensor) -> float:
    difference = (ours.double().cpu() - reference).abs().max() / reference.abs().max()
    return float(difference.nan_to_num(torch.inf))


def _refuse(backend: str, inputs: Inputs) -> None:
    if backend != "xformers":
        return
    if importlib.util.find_spec("xformers") is None:
        raise ConfigError("it is not installed")
    # What it warns of in six lines is the reason given here.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    import xformers._cpp_lib

    unfit = getattr(xformers._cpp_lib, "_cpp_library_load_exception", None)
    if unfit is not None and inputs.device.type == "cuda":
        raise ConfigError(_unfit(unfit))
    if inputs.deterministic and importlib.util.find_spec("flash_attn"):
        raise ConfigError(
            "the package flash_attn, which it takes, adds up gradients in no fixed order"
        )


def _unfit(error: Exception) -> str:
    """Say what xformers was built for, and which library it lacks. Its own words hide that."""
    built, cause = getattr(error, "build_info", None), error.__cause__
    if built is None or cause is None:
        return str(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
    built_for = f"built for PyTorch {built.torch_version}, not {torch.__version__}"
    return f"{built_for}, it cannot be loaded: {cause}"


_chosen: dict[Inputs, str] = {}


def backend_for(device: torch.device, dtype: torch.dtype, width: int, traced: bool = False) -> str:
    """Return the name of the first backend that works for such inputs. The first call for them
    tries it, and logs the outcome. traced: whether torch.compile is to go through it. Raises
    ConfigError if none works."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    inputs = Inputs(device, dtype, width, deterministic, traced)
    if inputs not in _chosen:
        _chosen[inputs] = _choose(inputs)
    return _chosen[inputs]


def make_traceable() -> None:
    """Let torch.compile go through `attention` without a break: it calls `backend_for` while it
    traces, and takes the name as a constant."""
    torch.compiler.assume_constant_result(backend_for)  # type: ignore[no-untyped-call]


def in_use(device_type: str) -> list[str]:
    """Return the backends that computed in this process on devices of that type."""
    return sorted({name for inputs, name in _chosen.items() if inputs.device.type == device_type})


def _choose(inputs: Inputs) -> str:
    refused = []
    for name in BACKENDS:
        if name == "xformers" and inputs.device.type == "cpu":
            # This is known without its import, which takes seconds.
            refused.append("xformers has no operator for CPUs")
            continue
        if name == "xformers" and inputs.traced:
            # It chooses among its operators in Python, and its kernels are those that SDPA calls.
            refused.append("torch.compile does not go through xformers")
            continue
        outcome = probe(name, inputs)
        if outcome.works:
            _announce(inputs.device.type, dtype_name(inputs.dtype), name, "; ".join(refused))
            return name
        refused.append(f"{name} does not work: {outcome.reason}")
    raise ConfigError(
        f"no attention backend works on {inputs.device} in {dtype_name(inputs.dtype)}: "
        f"{'; '.join(refused)}"
    )


@cache
def _announce(device: str, dtype: str, name: str, refused: str) -> None:
    log.info("attention on %s, %s: %s%s", device, dtype, name, f" ({refused})" if refused else "")


def table(device: torch.device, width: int = 64) -> dict[str, list[Probe]]:
    """Try every backend on a device, by dtype. width: of a head."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    return {
        dtype_name(dtype): [
            probe(name, Inputs(device, dtype, width, deterministic)) for name in BACKENDS
        ]
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    }


def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, backend: str | None = None
) -> Tensor:
    """Return softmax(q k^T / sqrt(head width)) v, without a mask, in the shape of q.

    q, k, v: (B, M, heads, head width), of any floating dtype, on one device. dropout: probability
    with which attention weights are dropped (0 in evaluation). backend: one of `BACKENDS`; the
    first that works if None. Raises ConfigError if none works.
    """
    if q.is_meta:  # only shapes and operations are counted
        return _sdpa(q, k, v, dropout)
    # Under autocast the residual stream is float32; the products need not be.
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if backend is None:
        traced = torch.compiler.is_compiling()
        backend = backend_for(q.device, q.dtype, q.shape[-1], traced)
    return BACKENDS[backend](q, k, v, dropout)
