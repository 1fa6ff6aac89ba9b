"""The reference's outputs and its training, on the GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.parity import TOLERANCES, compare
from tests.conftest import FIXTURES
from tests.gpu.conftest import DEVICE
from tests.gpu.processes import processes
from tests.trainer.test_trajectory import changed, failing
from trainer.trajectory import _PRECISION

pytestmark = pytest.mark.gpu
Say = Callable[[str], None]


STEPS = [  # (fixture, dtype); the larger one in half precision takes minutes without a GPU
    (name, dtype)
    for name in ("small", "grid16")
    for dtype in TOLERANCES
    if DEVICE == "cuda" or name == "small" or dtype == "float32"
]


@pytest.mark.parametrize(("name", "dtype"), STEPS)
def test_a_step_of_the_reference(name: str, dtype: str, device: torch.device, say: Say) -> None:
    """Bounds: `model.parity.TOLERANCES`, as on the CPU."""
    report = compare(FIXTURES / name, str(device), dtype)
    worst = {key: row for key, row in report["quantities"].items() if not row["holds"]}
    assert report["holds"], worst
    rows = report["quantities"]
    gradients = max(row["deviation"] for key, row in rows.items() if key.startswith("grad"))
    say(
        f"parity {name} {dtype}: loss {rows['loss']['deviation']:.1e}, x_t "
        f"{rows['x_t']['deviation']:.1e}, gradients {gradients:.1e}, attention "
        f"{report['attention']}"
    )


def replays(cases: list[tuple[str, int]], device: torch.device, tmp_path: Path, say: Say) -> None:
    """(dtype, ZeRO stage). Bounds: `trainer.trajectory.TOLERANCES`. On the CPU four steps, no final
    weights."""
    whole = device.type == "cuda"
    folder = FIXTURES / "trajectory" if whole else changed(tmp_path, 4)
    reports = [tmp_path / f"{dtype}-{stage}.json" for dtype, stage in cases]
    options = ["--device", device.type, "--report"]
    ended = processes(
        [
            [
                "-m",
                "trainer.trajectory",
                str(folder),
                *options,
                str(file),
                "--dtype",
                dtype,
                "--zero-stage",
                str(stage),
            ]
            for file, (dtype, stage) in zip(reports, cases, strict=True)
        ]
    )
    for (dtype, stage), file, done in zip(cases, reports, ended, strict=True):
        assert file.exists(), done.output
        report: dict[str, Any] = json.loads(file.read_text())
        off = {
            key: row
            for key, row in failing(report).items()
            if whole or not key.startswith("final.")
        }
        assert not off, (dtype, stage, off)
        rows = report["quantities"]
        final = max(row["deviation"] for key, row in rows.items() if key.startswith("final."))
        say(
            f"trajectory {dtype} ZeRO-{stage}: loss {rows['loss']['deviation']:.1e}, gradient norm "
            f"{rows['grad_norm']['deviation']:.1e}"
            + (f", final weights {final:.1e}" if whole else "")
        )


def test_forty_steps_in_every_zero_stage(device: torch.device, tmp_path: Path, say: Say) -> None:
    """With PyTorch's fused AdamW."""
    replays([("float32", stage) for stage in range(4)], device, tmp_path, say)


def test_forty_steps_in_every_other_precision(
    device: torch.device, tmp_path: Path, say: Say
) -> None:
    replays(
        [
            (dtype, 1)
            for dtype in _PRECISION
            if dtype != "float32"
            and (device.type == "cuda" or dtype != "float16")  # which DeepSpeed refuses on CPUs
        ],
        device,
        tmp_path,
        say,
    )
