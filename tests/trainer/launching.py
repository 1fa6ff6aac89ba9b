"""Real runs under the real deepspeed launcher, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.launch.backend import LaunchRequest
from cluster.launch.backends.deepspeed import DeepSpeedBackend
from cluster.launch.hosts import this_machine
from tests.patience import PATIENCE, until
from tests.warm import warm_python

MAGE = (
    "objective=mage",
    "predictor.sizes.size=tiny",
    "tokenizer.sizes.size=tiny",
    "precision=fp32",
)
SMALL = (
    "batch.global_batch=8",
    "batch.micro=2",
    "schedule.unit=steps",
    "schedule.total=12",
    "schedule.warmup=2",
    "checkpoint.every=4",
    "log_every=1",
    "optimizer.base_lr=0.03",
)


def launcher_command(ranks: int, module: str, arguments: Sequence[str]) -> list[str]:
    """The words that start a module on this machine, as `addp train` would."""
    request = LaunchRequest(module, arguments, this_machine(ranks))
    return list(DeepSpeedBackend().plan(request).commands[0].words)


def warm_launcher(processes: int, module: str, arguments: Sequence[str]) -> list[str]:
    """The deepspeed launcher and its ranks, all forked with their imports."""
    return [warm_python(), *launcher_command(processes, module, arguments)[1:]]


def start(run: Path, *overrides: str, processes: int = 2) -> subprocess.Popen[str]:
    """Nothing is imported before, and process groups are a user's."""
    arguments = [f"run={run}", *SMALL, *overrides]
    return _start(launcher_command(processes, "trainer.pretrain", arguments))


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )


def train(run: Path, *overrides: str, processes: int = 2) -> tuple[int, str]:
    """(exit code, output) of a whole run."""
    arguments = [f"run={run}", *SMALL, *overrides]
    process = _start(warm_launcher(processes, "trainer.pretrain", arguments))
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
    return process.returncode, output


def kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until(path.exists, alive=lambda: process.poll() is None, said=lambda: f"no {path}")
