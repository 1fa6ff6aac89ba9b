"""Attention backends: equal to the formula, chosen by trying. `tests/gpu/test_attention.py` has
CUDA."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model import attention as module
from model.attention import BACKENDS, Inputs, attention, backend_for, probe, table
from model.errors import ConfigError, in_one_line
from tests.cluster.calling import typed

CPU = torch.device("cpu")


@pytest.fixture
def nothing_chosen() -> Iterator[None]:
    """Choose and log as at the start of a process, and again so afterwards."""

    def forget() -> None:
        module._chosen.clear()
        module._announce.cache_clear()
        probe.cache_clear()

    forget()
    yield
    forget()


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[-1] ** 0.5).exp()
    return (weights / weights.sum(-1, keepdim=True) @ v.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("backend", ["sdpa", "explicit"])
@pytest.mark.parametrize("shape", [(2, 17, 3, 16), (1, 5, 2, 8), (3, 129, 4, 32)])
def test_backends_equal_the_formula(backend: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    ours, reference = attention(q, k, v, backend=backend), by_hand(q, k, v)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(reference)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((reference * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [module._SCORES, 2 * 3 * 129**2, 1])
def test_in_bfloat16_without_gradients(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, however many images are computed at a time."""
    monkeypatch.setattr(module, "_SCORES", at_once)
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 129, 3, 32).bfloat16() for _ in range(3))
    with torch.no_grad():
        ours = attention(q, k, v, backend="sdpa").double()
    reference = by_hand(q.double(), k.double(), v.double())
    assert ours.shape == reference.shape
    limit = module.TOLERANCES[torch.bfloat16] * float(reference.abs().max())
    assert float((ours - reference).abs().max()) < limit


@pytest.mark.parametrize("backend", ["sdpa", "explicit"])
def test_dropout_drops_the_same_in_both_passes(backend: str) -> None:
    """The result is linear in v, so that <gradient of v, v> is <weight, result>, whatever was
    dropped."""
    torch.manual_seed(0)
    q, k, v, weight = (torch.randn(2, 40, 2, 16, dtype=torch.float64) for _ in range(4))
    v.requires_grad_(True)
    result = attention(q, k, v, 0.3, backend)
    total = (result * weight).sum()
    (gradient,) = torch.autograd.grad(total, v)
    assert float((gradient * v).sum().detach()) == pytest.approx(float(total.detach()))
    assert not torch.allclose(result, attention(q, k, v, 0.0, backend))


@pytest.mark.usefixtures("nothing_chosen")
def test_the_choice_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="model.attention"):
        assert {backend_for(CPU, torch.float32, width) for width in (8, 16, 16)} == {"sdpa"}
    assert [r.getMessage() for r in caplog.records] == [
        "attention on cpu, float32: sdpa (xformers has no operator for CPUs)"
    ]


@pytest.mark.usefixtures("nothing_chosen")
@pytest.mark.parametrize("fault", ["wrong", "wrong gradient", "not a number", "refused"])
def test_a_backend_that_does_not_work_is_left_out(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if fault == "refused":
            raise NotImplementedError(
                "No operator found:\n`a` is not supported because:\n  no kernel\n  no kernel"
            )
        right = module._sdpa(q, k, v, dropout)
        return {
            "wrong": right * 1.01,
            "wrong gradient": right.detach() * (v / v.detach()),
            "not a number": right * torch.nan,
        }[fault]

    monkeypatch.setitem(BACKENDS, "sdpa", faulty)
    with caplog.at_level(logging.INFO, logger="model.attention"):
        assert backend_for(CPU, torch.float32, 16) == "explicit"
    assert (
        "sdpa does not work: " + ("no kernel)" if fault == "refused" else "it is wrong: off by ")
        in caplog.text
    )
    monkeypatch.setitem(BACKENDS, "explicit", faulty)
    with pytest.raises(ConfigError, match="no attention backend works on cpu in float64"):
        backend_for(CPU, torch.float64, 16)


@pytest.mark.usefixtures("nothing_chosen")
def test_trying_changes_nothing_and_works_in_any_mode() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert backend_for(CPU, torch.bfloat16, 16) == "sdpa"
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_xformers_is_asked_and_refuses_here() -> None:
    """The reason is in its own words, not ours. What it says on a GPU is asked in the same way."""
    outcome = probe("xformers", Inputs(CPU, torch.float32, 16, False))
    assert (
        not outcome.works
        and outcome.forward is None
        and "device=cpu" in outcome.reason
        and "\n" not in outcome.reason
    )


def test_an_xformers_that_cannot_be_loaded_says_which_library_it_lacks() -> None:
    """What it raised where it is such a one: PyPI's, beside a PyTorch for CPUs or for another CUDA.
    Where it fits, the exception is its own class, with what the dynamic linker says as its
    cause."""
    from xformers import _cpp_lib

    error = _cpp_lib._cpp_library_load_exception
    if error is None:
        error = _cpp_lib.xFormersInvalidLibException(_cpp_lib._build_metadata)
        error.__cause__ = OSError("libcudart.so.12: cannot open shared object file")
    text = module._unfit(error)
    assert f"not {torch.__version__}, it cannot be loaded: lib" in text and "\n" not in text
    assert in_one_line(ConfigError(text)) == text


def test_every_dtype_is_in_the_table() -> None:
    for dtype, rows in table(CPU).items():
        assert [row.backend for row in rows] == ["xformers", "sdpa", "explicit"]
        assert [row.works for row in rows] == [False, True, True], dtype


def test_the_command_prints_the_table() -> None:
    done = typed("parity", "--attention", "--json")
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.code == 0 and report["device"] == "cpu" and not done.stderr
    assert (
        report["dtypes"]["bfloat16"]["sdpa"]["works"]
        and report["dtypes"]["float16"]["xformers"]["reason"]
    )
    rows = typed("parity", "--attention").stdout.splitlines()
    assert len(rows) == 2 + 4 * 3 and rows[3].split()[:3] == ["float32", "sdpa", "yes"]
