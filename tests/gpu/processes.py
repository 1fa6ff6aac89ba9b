"""Processes of one rank, each a world of its own, a few of them at a time on the one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cluster.launch.backend import free_port
from tests.gpu.conftest import DEVICE
from tests.patience import PATIENCE
from tests.trainer.launching import SMALL

AT_ONCE = int(os.environ.get("ADDP_GPU_TESTS_AT_ONCE", "4"))
_WORLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "DS_ACCELERATOR")
_SABOTAGED = """
import trainer.pretrain
from tests.trainer.sabotage import Sabotage
Sabotage("os.rename", ({!r},)).install(0)
trainer.pretrain.run_and_leave()
"""
_WATCHED = """
import torch
import trainer.pretrain
from trainer.loop import Trainer
step = Trainer._train_step
def watched(self, *arguments):
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error" if self._step > 2 else "default")
    step(self, *arguments)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
Trainer._train_step = watched
trainer.pretrain.run_and_leave()
"""


class Ended(NamedTuple):
    code: int
    output: str  # standard output, and what stood on standard error behind it


def processes(commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Python with these arguments, `AT_ONCE` at a time. Raises TimeoutExpired."""

    def run(command: Sequence[str]) -> Ended:
        environment = {k: v for k, v in os.environ.items() if k not in _WORLD} | {
            "MASTER_PORT": str(free_port())
        }
        if DEVICE == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout + done.stderr)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, commands))


def training(run: Path, *overrides: str, killed_at: str | None = None) -> list[str]:
    """The command of a small run in that folder. killed_at: by SIGKILL, in place of the first
    rename of such a name."""
    start = ["-c", _SABOTAGED.format(killed_at)] if killed_at else ["-m", "trainer.pretrain"]
    return [*start, f"run={run}", *SMALL, *overrides]


def watched(run: Path, *overrides: str) -> list[str]:
    """As `training`; from the fourth step on, CUDA raises an error where a step waits for it."""
    return ["-c", _WATCHED, f"run={run}", *SMALL, *overrides]


def finish(*commands: Sequence[str]) -> list[str]:
    """Runs that must end well. Returns their outputs."""
    ended = processes(commands)
    for done in ended:
        assert done.code == 0, done.output
    return [done.output for done in ended]


def backends(output: str) -> str:
    """What a run says of attention."""
    return "; ".join(dict.fromkeys(re.findall(r"attention on (.*)", output)))
