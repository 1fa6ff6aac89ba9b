"""What a supervisor writes down of its ranks, for the one that comes after it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.supervise import ranks
from cluster.supervise.ranks import end_orphans
from tests.patience import PATIENCE, until
from trainer.run_folder import RunFolder

SLEEP = [sys.executable, "-c", "import time; time.sleep(86_400)"]
# A supervisor as far as its register goes: it writes a rank down, and lives on or ends.
SUPERVISOR = """
import subprocess, sys, time
from cluster.supervise import ranks
from trainer.run_folder import RunFolder
sleep = [sys.executable, "-c", "import time; time.sleep(86_400)"]
rank = subprocess.Popen(sleep, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
folder = RunFolder(sys.argv[1])
ranks._write_down(folder, "n0", [rank.pid])
while not ranks._register(folder, "n0").exists():
    time.sleep(0.01)
print(rank.pid, flush=True)
sys.stdin.read()
"""

# A supervisor that is silent until its rank is killed, and then lives on.
SILENT = """
import asyncio, sys, time
from cluster.supervise.output import Output
from cluster.supervise.ranks import Layout, Ranks
from trainer.run_folder import RunFolder

async def node():
    layout = Layout(attempt=1, first=0, ranks=1, world=1, address="127.0.0.1", port=1)
    sleep = [sys.executable, "-c", "import time; time.sleep(86_400)"]
    ranks = Ranks(sleep, layout, RunFolder(sys.argv[1]), Output(), name="n0", lost=2)
    while ranks.running or not ranks.clear():
        ranks.poll()
        if not ranks.running:
            ranks.beat()
        await asyncio.sleep(0.02)
    print([report.code for report in ranks.reports()])

asyncio.run(node())
"""


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_ranks_of_a_supervisor_that_lives_are_no_orphans(tmp_path: Path) -> None:
    """Two supervisors on one machine may have the same name before the coordinator gives them
    others."""
    folder = RunFolder(tmp_path)
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    supervisor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    rank = int(supervisor.stdout.readline())
    try:
        assert end_orphans(folder) == 0 and alive(rank)
        supervisor.kill()
        supervisor.communicate()
        assert end_orphans(folder) == 1
        until(lambda: not alive(rank))
    finally:
        supervisor.kill()
        if alive(rank):
            os.kill(rank, 9)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a b; $(x)\n", ".."])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert ranks._register(folder, name).parent == ranks._registers(folder)


def test_a_hosts_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "../..")
    assert ranks._registers(RunFolder(tmp_path)).parent == tmp_path / "supervisors"


def test_a_guardian_that_has_killed_the_ranks_ends(tmp_path: Path) -> None:
    """Where a supervisor is silent for a while and comes back, its guardian waits on, outside of
    the group of the ranks. If it were waited for, the node could never take part again."""
    command = [sys.executable, "-c", SILENT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "[-9]\n", done.stderr


def test_the_last_word_on_a_node_stays(tmp_path: Path) -> None:
    """Although each is written by a thread of its own."""
    folder = RunFolder(tmp_path)
    process = subprocess.Popen(SLEEP)
    try:
        for number in range(50):
            ranks._write_down(folder, "n0", [process.pid] if number % 2 else [])
        register = ranks._register(folder, "n0")
        until(lambda: register.exists() and json.loads(register.read_text())["processes"])
        time.sleep(0.3)
        assert json.loads(register.read_text())["processes"][0][0] == process.pid
        assert [file.name for file in register.parent.iterdir()] == ["n0.json"]
    finally:
        process.kill()
        process.wait()
