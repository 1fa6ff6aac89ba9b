"""The reference's outputs, reproduced to rounding error, through the tool that users run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.errors import WeightsError
from model.ledger import verdict
from model.parity_folder import read_folder
from tests.conftest import FIXTURES
from tests.warm import warm_python


def run_tool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), "-m", "model.parity", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("small", "float32"), ("grid16", "float32"), ("small", "bfloat16"), ("small", "float16")],
)
def test_reference_is_reproduced(name: str, dtype: str) -> None:
    """Half precisions on the small network only: a processor that emulates them takes minutes for
    the other."""
    done = run_tool(FIXTURES / name, "--dtype", dtype)
    report = json.loads(done.stdout)
    failing = {k: v for k, v in report["quantities"].items() if not v["holds"]}
    assert done.returncode == 0 and not failing, failing
    quantities = report["quantities"]
    assert {
        "token_indices",
        "vq_reconstruction",
        "x_t",
        "target_prob",
        "encoder_output",
        "logits",
        "loss",
    } <= set(quantities)
    assert sum(k.startswith("grad_norm.") for k in quantities) == len(
        json.loads((FIXTURES / name / "meta.json").read_text())["grad_norms"]
    )
    assert sum(k.startswith("grad.") for k in quantities) == 13
    if name == "grid16":
        assert sum(k.endswith(".mask_next") for k in quantities) == 4
    assert done.stderr.splitlines()[-1] == (
        f"parity holds: {len(quantities)} quantities within their bounds ({dtype}, cpu)"
    )
    if dtype == "float32":
        assert quantities["token_indices"]["deviation"] == 0
        assert quantities["loss"]["tolerance"] == 1e-5 and quantities["x_t"]["tolerance"] == 1e-4


def test_another_network_does_not_pass(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "small", tmp_path / "f")
    weights = load_file(tmp_path / "f" / "weights.safetensors")
    weights["token_predictor.blocks.1.mlp.fc1.weight"] *= 1.02
    save_file(weights, tmp_path / "f" / "weights.safetensors")
    done = run_tool(tmp_path / "f")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and not report["holds"]
    assert (
        not report["quantities"]["target_prob"]["holds"]
        and report["quantities"]["vq_reconstruction"]["holds"]
    )
    said = re.fullmatch(
        r"parity FAILS: (\d+) of (\d+) quantities are off their bounds \(float32, cpu\); "
        r"the worst, (\S+), is (\S+) off, allowed (\S+)",
        done.stderr.splitlines()[-1],
    )
    assert said is not None, done.stderr
    assert int(said[1]) == sum(not row["holds"] for row in report["quantities"].values())
    assert int(said[2]) == len(report["quantities"]) and float(said[4]) > float(said[5])


def test_what_is_no_number_fails_and_is_named() -> None:
    rows = {
        "loss": {"deviation": 1.0, "tolerance": 1e-5, "holds": False},
        "x_t": {"deviation": float("nan"), "tolerance": 1e-4, "holds": False},
    }
    report = {"dtype": "float32", "device": "cpu", "holds": False, "quantities": rows}
    assert "the worst, x_t, is nan off, allowed 0.0001" in verdict(report)


def test_a_folder_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    done = run_tool(tmp_path)
    assert (
        done.returncode == 1
        and "no parity folder" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_missing_device_is_said_so() -> None:
    import torch

    done = run_tool(FIXTURES / "small", "--device", "cuda:99")
    assert done.returncode != 0
    assert torch.cuda.is_available() or "sees no CUDA device" in done.stderr


def test_a_reference_that_no_sampler_can_follow_is_refused(tmp_path: Path) -> None:
    meta = json.loads((FIXTURES / "grid16" / "meta.json").read_text())
    meta["generation"]["choice_temperature"] = -1.0
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match=r"generation\.choice_temperature: .*-1"):
        read_folder(tmp_path)
