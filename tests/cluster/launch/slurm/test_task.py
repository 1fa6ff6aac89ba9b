"""A node that stands in for the script of a job."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.launch.slurm import task
from cluster.supervise import history
from tests.cluster.launch.slurm.jobs import slurm, start, verdict
from trainer.run_folder import RunFolder


@pytest.mark.parametrize(
    ("code", "node", "answers", "coordinator", "times"),
    [
        (81, "n2", False, "lost", 1),
        (81, "n2", True, "lost", 0),  # the script lives, and decides
        (81, "n2", False, "said so", 0),
        (81, "n1", False, "lost", 0),  # the script's own node
        (75, "n2", False, "lost", 0),
        (0, "n2", False, "lost", 0),
    ],
)
def test_a_node_stands_in_for_a_script_that_is_lost(
    code: int,
    node: str,
    answers: bool,
    coordinator: str,
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = slurm(tmp_path / "programs", monkeypatch)
    srun = tmp_path / "programs" / "srun"
    srun.write_text(f"#!/bin/sh\nexit {0 if answers else 1}\n")
    srun.chmod(0o755)
    monkeypatch.setenv("SLURMD_NODENAME", node)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    now = time.time() + 60  # what the supervisor writes while it runs
    history.append(run.supervision, start(now))
    if coordinator == "said so":
        history.append(run.supervision, verdict("incomplete", 81, now))
    command = ["--run", str(run.path), "--", "sh", "-c", f"exit {code}", "--", "word"]
    assert task.main(command) == code
    assert log.exists() == (code == 81 and coordinator == "lost")
    assert (log.read_text().count("requeue 17") if log.exists() else 0) == times
