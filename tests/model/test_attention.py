from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from model.attention import attention, backend_for

AVAILABLE = [("cpu", "sdpa")]
if torch.cuda.is_available():
    AVAILABLE += [("cuda", "sdpa")] + [("cuda", "xformers")] * bool(importlib.util.find_spec("xformers"))


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v)


@pytest.mark.parametrize(("device", "backend"), AVAILABLE)
@pytest.mark.parametrize("shape", [(2, 17, 3, 16), (1, 5, 2, 8), (3, 129, 4, 32)])
def test_backends_equal_the_explicit_reference(device: str, backend: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape, device=device, requires_grad=True) for _ in range(3))
    ours, reference = attention(q, k, v, backend=backend), explicit(q, k, v)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(reference)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((reference * weight).sum(), (q, k, v)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_choice_by_device_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backend_for.cache_clear()
    with caplog.at_level(logging.INFO, logger="model.attention"):
        assert backend_for("cpu") == "sdpa" and backend_for("cpu") == "sdpa"
    assert [r.getMessage() for r in caplog.records] == ["attention backend on cpu: sdpa"]
    # On CUDA the choice follows from what is installed, which needs no GPU to be asked.
    assert backend_for("cuda") == ("xformers" if importlib.util.find_spec("xformers") else "sdpa")
