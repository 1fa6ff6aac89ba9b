from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import MODULES


def addp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    done = addp("--help")
    assert done.returncode == 0
    for name in [*MODULES, "train", "demo", "config", "openmoji"]:
        assert name in done.stdout


@pytest.mark.parametrize("command", ["generate", "evaluate", "export", "import", "tokenize", "parity", "train"])
def test_each_command_has_help(command: str) -> None:
    done = addp(command, "--help")
    assert done.returncode == 0 and len(done.stdout) > 300, done.stderr


def test_config() -> None:
    root = Path(__file__).parents[2]
    done = addp("config", str(root / "configs" / "base.yaml"), "batch.micro=32")
    assert done.returncode == 0 and "micro: 32" in done.stdout and "dim: 768" in done.stdout
    done = addp("config", str(root / "configs" / "base.yaml"), "batch.mikro=32")
    assert (
        done.returncode == 78 and "nearest known one is batch.micro" in done.stderr and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize("command", ["generate", "evaluate", "report", "export"])
def test_a_run_that_is_not_there(command: str, tmp_path: Path) -> None:
    done = addp(command, str(tmp_path / "none"), *([str(tmp_path / "out")] if command == "export" else []))
    assert done.returncode == 78 and "is no run folder" in done.stderr and "Traceback" not in done.stderr
