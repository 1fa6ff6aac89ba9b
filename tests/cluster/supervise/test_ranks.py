"""What ranks find in their environment, and what an earlier supervisor may have left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.supervise.ranks import (
    PORTS,
    Layout,
    _place,
    _registers,
    end_orphans,
    free_port,
    rank_environment,
)
from model.processes import start_of
from tests.patience import PATIENCE
from trainer.run_folder import RunFolder

LAYOUT = Layout(attempt=2, first=4, ranks=4, world=8, address="node1", port=30_001)


def test_ranks_know_their_place_and_nothing_of_the_launcher_of_supervisors() -> None:
    environment = {
        "PATH": "/bin",
        "LOCAL_SCRATCH": "/scratch",
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GROUP_RANK": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "LOCAL_SIZE": "1",
    }
    assert rank_environment(environment, LAYOUT, 3) == {
        "PATH": "/bin",
        "LOCAL_SCRATCH": "/scratch",
        "RANK": "7",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "30001",
    }


@pytest.mark.parametrize(
    ("given", "launched", "devices", "visible"),
    [
        ("0", True, (), None),  # one process, one GPU: a launcher's
        ("0", False, (), "0"),  # a user's own choice
        ("0,1,2,3", True, (), "0,1,2,3"),
        ("0", True, ("4", "5"), "4,5"),
    ],
)
def test_devices(given: str, launched: bool, devices: tuple[str, ...], visible: str | None) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": given} | ({"LOCAL_RANK": "0"} if launched else {})
    found = rank_environment(environment, LAYOUT, 0, devices)
    assert found.get("CUDA_VISIBLE_DEVICES") == visible


def test_each_attempt_has_a_port_that_is_free() -> None:
    first = free_port(29_650, 1)
    assert first in PORTS and free_port(29_650, 2) != first
    with socket.socket() as taken:
        taken.bind(("", first))
        assert free_port(29_650, 1) not in (first, free_port(29_650, 2) + 1)


def test_what_an_earlier_supervisor_left_behind_is_ended_and_no_stranger(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    orphan, stranger = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
    try:
        register = _registers(folder) / "n0.json"
        register.parent.mkdir(parents=True)
        begun = start_of(orphan.pid)
        processes = [[orphan.pid, begun], [stranger.pid, begun + 7777], [1, start_of(1)]]
        left = _place() | {"processes": processes, "supervisor": [orphan.pid, begun - 1]}
        register.write_text(json.dumps(left | {"boot": "another"}))
        assert end_orphans(folder) == 0
        alive = [stranger.pid, start_of(stranger.pid)]
        register.write_text(json.dumps(left | {"supervisor": alive}))
        assert end_orphans(folder) == 0
        register.with_name("n1.json").write_text(json.dumps(left))  # its name then was another
        assert end_orphans(folder) == 1
        assert orphan.wait(PATIENCE) == -9 and stranger.poll() is None
        for content in ("", "[]", '{"processes": [[1]]}', "\x00"):
            register.write_text(content)
            assert end_orphans(folder) == 0
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()
