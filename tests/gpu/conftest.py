"""Tests that a machine with one CUDA device runs: `make test-gpu` (docs/gpu.md). Nothing else runs
them.

ADDP_GPU_TESTS=cpu runs the same bodies in a small form without a GPU, which proves the tests and no
GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import Geometry, TransformerConfig
from model.precision import keep_float32
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import save_network

DEVICE = os.environ.get("ADDP_GPU_TESTS", "cuda")


def pytest_configure(config: pytest.Config) -> None:
    """`make test-gpu` without a GPU ends before anything is collected."""
    if config.option.markexpr == "gpu" and "tests/gpu" in map(str, config.invocation_params.args):
        require_gpu()


def require_gpu() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"tests of the marker gpu need a CUDA device, and PyTorch {torch.__version__} sees "
            "none here (docs/gpu.md)"
        )


@pytest.hookimpl(trylast=True)  # once -m has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = [item for item in items if item.get_closest_marker("gpu")]
    if not found:
        return
    if "gpu" not in config.option.markexpr:
        config.hook.pytest_deselected(items=found)
        items[:] = [item for item in items if item not in found]
    else:
        require_gpu()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """As every command sets it up: float32 is float32 there, where cuDNN would take TF32."""
    keep_float32()
    return torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A line for the summary."""
    return lambda line: record_property("gpu", line)


@pytest.fixture(scope="session")
def frozen_files(
    tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Overrides that name the tiny frozen networks of an ADDP run."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("frozen") / "predictor.safetensors"
    save_network(
        TokenPredictor(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")), path
    )  # type: ignore[call-arg]
    return [f"tokenizer.weights={tokenizer_file}", f"predictor.weights={path}"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [
        str(value) for report in reports for key, value in report.user_properties if key == "gpu"
    ]
    if lines:
        where = (
            torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU: small forms on the CPU"
        )
        terminalreporter.section(f"{where}, torch {torch.__version__}")
        for line in lines:
            terminalreporter.line(line)
