"""A launch backend is one file and one registration: this one starts a process a rank by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand
from cluster.launch.backends import BACKENDS
from cluster.launch.hosts import this_machine
from cluster.launch.launch import train
from model.errors import ConfigError
from tests.trainer.launching import MAGE, SMALL
from tests.warm import warm_python
from trainer.run_folder import RunFolder

# Starts `sys.argv[3:]` once for each of so many ranks, and ends with the first exit code that is
# not 0.
STARTER = """
import os, subprocess, sys
size, port, *words = sys.argv[1:]
meeting = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(int(size))]
ranks = [subprocess.Popen(words, env={**os.environ, **meeting, **place}) for place in places]
sys.exit(next(filter(None, [rank.wait() for rank in ranks]), 0))
"""


class ToyBackend:
    """Starts all ranks on this machine without a launcher."""

    def check(self, request: LaunchRequest) -> None:
        if not request.hosts.is_this_machine:
            raise ConfigError("the toy backend starts ranks on this machine only")

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        starter = [sys.executable, "-c", STARTER, str(request.hosts.processes), str(request.port)]
        rank = [warm_python(), "-m", request.module, *request.arguments]
        return LaunchPlan([PlannedCommand([*starter, *rank], {"DS_ACCELERATOR": "cpu"})])


def test_a_toy_backend_trains_on_two_ranks(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "toy", ToyBackend())
    run = tmp_path / "run"
    arguments = [f"run={run}", f"data.tokens={tokens}", "expect_ranks=2", *MAGE, *SMALL]
    assert not train(run, arguments, this_machine(2), backend="toy")
    folder = RunFolder(run)
    assert folder.is_done and folder.read_metrics()[-1]["step"] == 11
    assert len(list(folder.heartbeats.glob("rank-*.json"))) == 2
