"""`addp launch` on this machine, with the real supervisor, launcher or none, and real ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cluster.launch.hosts import this_machine
from cluster.launch.launch import train
from cluster.supervise import history
from tests.patience import PATIENCE, until
from tests.trainer.launching import MAGE, SMALL, kill_group
from tests.trainer.worlds import finish
from tests.warm import warm_python
from trainer.run_folder import RunFolder


def start(
    run: Path, tokens: Path, *options: str, python: str = sys.executable
) -> subprocess.Popen[str]:
    config = run.parent / "run.yaml"
    config.write_text("seed: 0\n")
    words = [*MAGE, *SMALL, "schedule.total=60", f"data.tokens={tokens}", f"run={run}"]
    return subprocess.Popen(
        [python, "-m", "cluster.cli", "launch", str(config), *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        start_new_session=True,
    )


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics()]


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and the output of a launch. It is killed if it takes too long."""
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
    return process.returncode, said


def test_a_launch_is_stopped_and_goes_on_to_the_same_end(tokens: Path, tmp_path: Path) -> None:
    """The first start is a real one, because its signal is passed on along real processes."""
    folder = RunFolder(tmp_path / "run")
    process = start(folder.path, tokens, "--processes", "2")
    until(lambda: folder.newest_checkpoint() is not None or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    code, said = outcome(process)
    if code != 0:  # 0: the run was quicker than the signal
        assert code == 75, said
        verdict = history.last(history.read(folder.supervision), history.Verdict)
        assert verdict is not None and verdict.verdict == "stopped"
    code, said = outcome(start(folder.path, tokens, "--processes", "2", python=warm_python()))
    assert code == 0 and folder.is_done, said
    assert "2 ranks" in said and "-m cluster.supervise" in said  # the plan is shown first
    finish(tmp_path / "plain", *MAGE, "schedule.total=60", f"data.tokens={tokens}")
    assert losses(folder.path) == losses(tmp_path / "plain")


def test_plain_torchrun_trains(tokens: Path, tmp_path: Path) -> None:
    """Without any supervisor, as `torchrun -m trainer.pretrain` does."""
    run = tmp_path / "run"
    words = [*MAGE, *SMALL, f"data.tokens={tokens}", f"run={run}", "expect_ranks=2"]
    assert not train(run, words, this_machine(2), backend="torchrun")
    assert RunFolder(run).is_done
