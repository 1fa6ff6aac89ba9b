"""Forty optimizer steps of the reference, through the trainer's own engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import ConfigError, WeightsError
from model.ledger import verdict
from tests.cluster.calling import Called, addp, typed
from tests.conftest import FIXTURES
from tests.trainer.worlds import Outcome, Ranks
from trainer.trajectory import main
from trainer.trajectory_folder import TrajectoryFolder

FOLDER = FIXTURES / "trajectory"


def replay(
    folder: Path, out: Path, *options: str, processes: int = 2
) -> tuple[Outcome, dict[str, Any]]:
    report = out / "report.json"
    outcome = Ranks(
        main, [str(folder), "--report", str(report), *options], processes, out / "log"
    ).wait()
    return outcome, json.loads(report.read_text()) if report.exists() else {}


def failing(report: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in report["quantities"].items() if not row["holds"]}


@pytest.mark.parametrize("stage", [0, 1, 3])  # 2: by the command line
def test_the_engine_follows_the_reference(stage: int, tmp_path: Path) -> None:
    (codes, output), report = replay(FOLDER, tmp_path, "--zero-stage", str(stage))
    assert codes == [0, 0] and verdict(report) in output, (failing(report), output)
    rows = report["quantities"]
    assert (report["processes"], report["zero_stage"], report["steps"]) == (2, stage, 40)
    assert sum(name.startswith("final.") for name in rows) == 106
    bounds = {name.split(".")[0]: row["tolerance"] for name, row in rows.items()}
    assert bounds == {
        "loss": 1e-6,
        "grad_norm": 1e-4,
        "final": 1e-4,
        "skipped_steps": 0,
        "unmatched_names": 0,
    }


def test_the_command_line_replays_it_by_the_launcher() -> None:
    done = typed("parity", FOLDER, "--processes", 2, "--zero-stage", 2)
    report = json.loads(done.stdout)
    assert done.code == 0, (failing(report), done.stderr)
    assert "parity holds: 110 quantities within their bounds (float32, cpu)" in done.stderr
    assert (report["processes"], report["zero_stage"]) == (2, 2)


def test_the_trainer_s_own_loss_trains_alike(tmp_path: Path) -> None:
    (codes, output), report = replay(FOLDER, tmp_path, "--own-sums")
    assert codes == [0, 0] and report["sums"] == "own", (failing(report), output)


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16-mixed"])
def test_half_precision_keeps_to_the_path(dtype: str, tmp_path: Path) -> None:
    """A few steps: processors that emulate it take a minute for all."""
    _, report = replay(changed(tmp_path, 4), tmp_path, "--dtype", dtype)
    rows = report["quantities"]
    assert all(rows[name]["holds"] for name in ("loss", "grad_norm", "skipped_steps")), rows
    assert rows["loss"]["tolerance"] == 1e-3


def changed(tmp_path: Path, steps: int, **meta: Any) -> Path:
    """A copy with another meta.json, cut to its first steps."""
    folder = tmp_path / "changed"
    shutil.copytree(FOLDER, folder)
    changed_meta = json.loads((folder / "meta.json").read_text()) | meta
    (folder / "meta.json").write_text(json.dumps(changed_meta))
    tensors = load_file(folder / "trajectory.safetensors")
    cut = {
        name: t if name.startswith("final.") else t[:steps].contiguous()
        for name, t in tensors.items()
    }
    save_file(cut, folder / "trajectory.safetensors")
    return folder


def test_another_optimisation_does_not_pass(tmp_path: Path) -> None:
    (codes, output), report = replay(changed(tmp_path, 3, label_smoothing=0.11), tmp_path)
    assert 1 in codes and not report["holds"] and "parity FAILS" in output
    assert (
        not report["quantities"]["loss"]["holds"] and report["quantities"]["skipped_steps"]["holds"]
    )


def test_ranks_share_the_micro_batches_of_the_reference() -> None:
    folder = TrajectoryFolder(FOLDER)
    assert [folder.config(n, "fp32", 1).batch.micro for n in (1, 2, 4, 16)] == [8, 8, 4, 1]
    with pytest.raises(ConfigError, match="16 samples, which 3 ranks cannot share"):
        folder.config(3, "fp32", 1)


@pytest.mark.parametrize(
    ("meta", "tensors", "words"),
    [
        (
            {"micro": 4},
            {},
            r"token_indices has the shape \(2, 16, 16\), and meta.json asks for \(2, 8, 16\)",
        ),
        ({"heads": "many"}, {}, "meta.json describes no trajectory: heads"),
        ({"heads": 7}, {}, "dim = 64 is no multiple of heads = 7"),
        (
            {},
            {"mask_t": torch.ones(2, 16, 16).tril().bool()},
            "different numbers of tokens in one micro batch",
        ),
        ({}, {"loss": None}, "is no trajectory .*loss"),
    ],
)
def test_a_folder_that_does_not_fit_together(
    meta: dict[str, Any], tensors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = changed(tmp_path, 2, **meta)
    content = load_file(folder / "trajectory.safetensors") | tensors
    save_file(
        {name: t for name, t in content.items() if t is not None}, folder / "trajectory.safetensors"
    )
    with pytest.raises((WeightsError, ConfigError), match=words):
        TrajectoryFolder(folder)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    def refused(*arguments: object) -> Called:
        done = addp("parity", *arguments)
        assert done.code != 0 and not done.stdout and "Traceback" not in done.stderr
        return done

    assert "has no trajectory.safetensors" in refused(FIXTURES / "small", "--zero-stage", 2).stderr
    assert "is for trajectories" in refused(FIXTURES / "small", "--dtype", "bfloat16-mixed").stderr
    (codes, output), _ = replay(
        FOLDER, tmp_path, "--dtype", "bfloat16", "--zero-stage", "0", processes=1
    )
    assert codes == [78] and "zero_stage = 0 trains wrongly" in output
