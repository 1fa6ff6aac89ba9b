"""Attention backends on the GPU, at the sizes of the published networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.attention import BACKENDS, TOLERANCES, Inputs, attention, backend_for, probe, table
from model.attention_report import attention_lines, attention_report

pytestmark = pytest.mark.gpu
HALVES = (torch.bfloat16, torch.float16)


def test_the_table(device: torch.device, say: Callable[[str], None]) -> None:
    """PyTorch's own work in every dtype; xformers works, or says why not."""
    for dtype, rows in table(device).items():
        found = {row.backend: row for row in rows}
        assert found["sdpa"].works and found["explicit"].works, (dtype, rows)
        assert found["xformers"].works or found["xformers"].reason
    for line in attention_lines(attention_report(str(device))):
        say(line)


def test_xformers_is_taken_where_it_was_built_for_this_torch(device: torch.device) -> None:
    import xformers._cpp_lib

    built = xformers._cpp_lib._built_with_cuda and torch.version.cuda is not None
    assert bool(built) == (
        device.type == "cuda" and xformers._cpp_lib._cpp_library_load_exception is None
    )
    if built and torch.cuda.get_device_capability(device) >= (8, 0):
        assert {backend_for(device, dtype, 64) for dtype in HALVES} == {"xformers"}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    ("length", "heads", "width"), [(257, 12, 64), (385, 16, 48), (385, 16, 64)]
)
def test_real_sizes_forward_and_backward(
    length: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Against explicit attention in float32; bounds: `model.attention.TOLERANCES`."""
    torch.manual_seed(0)
    qkv = torch.randn(2, length, 3, heads, width, device=device).to(dtype)
    weight = torch.randn(2, length, heads, width, device=device).to(dtype)

    def both_ways(backend: str, qkv: torch.Tensor) -> list[torch.Tensor]:
        leaf = qkv.detach().clone().requires_grad_(True)
        result = attention(*leaf.unbind(2), backend=backend)
        return [result.detach(), *torch.autograd.grad((result * weight.to(qkv.dtype)).sum(), leaf)]

    expected = both_ways("explicit", qkv.float())
    for backend in BACKENDS:
        if probe(backend, Inputs(device, dtype, width, False)).works:
            for ours, theirs in zip(both_ways(backend, qkv), expected, strict=True):
                assert (
                    float((ours.float() - theirs).abs().max() / theirs.abs().max())
                    < TOLERANCES[dtype]
                ), backend


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_dropout_drops_the_same_in_both_passes(dtype: torch.dtype, device: torch.device) -> None:
    """The result is linear in v, so <gradient of v, v> is <weight, result>, whatever was dropped;
    up to rounding, for which the bound is a hundredth of what the product could be (float32: a
    hundred-thousandth)."""
    for backend in BACKENDS:
        if not probe(backend, Inputs(device, dtype, 64, False)).works:
            continue
        torch.manual_seed(0)
        q, k, v, weight = (torch.randn(2, 257, 4, 64, device=device).to(dtype) for _ in range(4))
        v.requires_grad_(True)
        result = attention(q, k, v, 0.3, backend)
        (gradient,) = torch.autograd.grad((result * weight).sum(), v)
        assert not torch.allclose(result, attention(q, k, v, 0.0, backend), atol=1e-2)
        from_gradient, from_result = (
            (a.double() * b.double()).sum() for a, b in ((gradient, v), (weight, result))
        )
        scale = weight.double().norm() * result.double().norm()
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        assert float(((from_gradient - from_result).abs() / scale).detach()) < bound, backend
