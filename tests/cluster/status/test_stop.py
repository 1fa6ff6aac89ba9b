"""When a run is asked to stop, and when a STOP would only harm. Runs that train are in
tests/cluster/commands/test_status.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.status.stop import exit_code
from cluster.supervise.history import NodeName, Start, Verdict
from tests.cluster.calling import addp
from tests.cluster.status.made import MadeRun, running

NODES = (NodeName(node="0", host="node1"),)


def alive(path: Path) -> MadeRun:
    """A run with a rank that beats just now, and for the next half a minute."""
    run = running(path)
    for rank in range(2):
        run.beat(rank, time=time.time())
    return run


def quiet(path: Path) -> MadeRun:
    """A run that has trained, and gives no sign of life."""
    run = MadeRun(path)
    run.environment()
    run.metrics(40)
    return run


def supervised(run: MadeRun, *more: Any) -> None:
    begun = time.time() - 5000
    run.supervised(
        Start(time=begun, attempt=1, nodes=NODES, ranks=2, checkpoint=None),
        *(kind(time=begun + 10, attempt=1, **values) for kind, values in more),
    )


def test_asking_twice_is_asking_once(tmp_path: Path) -> None:
    run = alive(tmp_path / "run")
    assert "is asked to stop" in addp("stop", run.path).stdout
    asked = run.folder.stop.read_text()
    assert "was asked to stop before" in addp("stop", run.path).stdout
    assert run.folder.stop.read_text() == asked and asked.startswith("addp stop on ")


def test_a_hanging_run_is_asked_with_a_warning(tmp_path: Path) -> None:
    run = alive(tmp_path / "run")
    run.beat(1, "data", time=time.time() - 500)
    assert "A rank that hangs does not save" in addp("stop", run.path).stdout
    assert run.folder.stop.exists()


@pytest.mark.parametrize("files", [{}, {"exit.json": {"code": 77, "reason": "it diverged"}}])
def test_a_run_that_does_not_run_gets_no_stop(tmp_path: Path, files: dict[str, Any]) -> None:
    run = MadeRun(tmp_path / "run")
    for name, content in files.items():
        run.write(name, content)
    assert "nothing to stop" in addp("stop", run.path).stdout and not run.folder.stop.exists()
    run.folder.stop.touch()
    assert "took STOP away" in addp("stop", run.path).stdout and not run.folder.stop.exists()


@pytest.mark.parametrize("verdict", [None, "incomplete"])
def test_a_run_that_its_launcher_may_start_again_gets_one(
    tmp_path: Path, verdict: str | None
) -> None:
    run = quiet(tmp_path / "run")
    more = [(Verdict, {"verdict": verdict, "code": 81, "reason": "node2 is missing"})]
    supervised(run, *(more if verdict else []))
    found = addp("stop", run.path)
    assert found.code == 0 and "ends that start at once" in found.stdout
    assert run.folder.stop.exists()


@pytest.mark.parametrize("verdict", ["done", "stopped", "failed", "gave up"])
def test_a_final_verdict_needs_no_stop(tmp_path: Path, verdict: str) -> None:
    run = quiet(tmp_path / "run")
    supervised(run, (Verdict, {"verdict": verdict, "code": 80, "reason": "so it is"}))
    assert "nothing to stop" in addp("stop", run.path).stdout and not run.folder.stop.exists()


def test_the_exit_code_is_the_runs(tmp_path: Path) -> None:
    found = running(tmp_path / "run").read()
    for told, code in (
        ({"code": 77, "state": "failed"}, 77),
        ({"code": -9, "state": "failed"}, 247),
        ({"code": None, "state": "dead"}, 1),
        ({"code": None, "state": "stopped"}, 75),
        ({"code": None, "state": "done"}, 0),
    ):
        assert exit_code(found.model_copy(update=told)) == code
