"""Ranks of an earlier start that nobody watches any more."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node.leftovers import Process, check_leftovers, orphans, rank_processes

WORDS = ("python", "-m", "trainer.pretrain", "run=/runs/a")
ORPHAN = Process(4321, WORDS, 1, ("/sbin/init",))


def test_orphans_of_this_run_and_of_others(tmp_path: Path) -> None:
    found = list(check_leftovers(Path("/runs/a"), [ORPHAN]))
    assert state(found, "leftovers") == "FAILED" and "kill 4321" in found[0].todo
    assert state(check_leftovers(Path("/runs/b"), [ORPHAN]), "leftovers") == "warning"
    (tmp_path / "heartbeats").mkdir()
    beat = {"time": 1, "host": platform.node(), "pid": 4321}
    (tmp_path / "heartbeats" / "rank-00000.json").write_text(json.dumps(beat))
    (tmp_path / "heartbeats" / "rank-00001.json").write_text("{")
    assert "kill 4321" in text(check_leftovers(tmp_path, [ORPHAN]), "FAILED")
    assert state(check_leftovers(Path("/runs/a"), []), "leftovers") == "ok"


def test_ranks_that_somebody_watches() -> None:
    """In a container, the supervisor may be process 1."""
    watched = ORPHAN._replace(parent_pid=900, parent=("python", "-m", "cluster.supervise"))
    contained = watched._replace(parent_pid=1)
    itself = ORPHAN._replace(pid=1, parent_pid=0, parent=())
    assert orphans([ORPHAN, watched, contained, itself]) == [ORPHAN]
    of_a_session = ORPHAN._replace(parent_pid=800, parent=("/lib/systemd/systemd", "--user"))
    assert orphans([of_a_session]) == [of_a_session]


def test_this_machine() -> None:
    assert all(process.pid for process in rank_processes())
