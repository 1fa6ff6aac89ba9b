"""What is started ends whole, and is explained from what the run itself says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand
from cluster.launch.backends import BACKENDS
from cluster.launch.hosts import this_machine
from cluster.launch.launch import RunFailed, train
from cluster.launch.postmortem import explain, last_words
from cluster.launch.process_group import run_group
from tests.patience import PATIENCE
from trainer.run_folder import RunFolder

CHILD = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(60)']); print(p.pid, flush=True)"
)


class Running:
    """A backend whose command is a piece of Python, whatever is asked of it."""

    def __init__(self, code: str) -> None:
        self.code = code

    def check(self, request: LaunchRequest) -> None:
        pass

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        return LaunchPlan([python(self.code)])


def python(code: str) -> PlannedCommand:
    return PlannedCommand([sys.executable, "-c", code])


def train_by(backend: Running, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "running", backend)
    train(run, [], this_machine(2), backend="running")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


def test_orphans_are_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """As when the launcher dies and leaves its ranks behind."""
    assert run_group(python(CHILD)) == (0, False)
    assert not alive(int(capfd.readouterr().out))


def test_a_signal_that_comes_too_late_is_not_forgotten() -> None:
    """The command ends well all the same; who started it must know, to start nothing else."""
    child = (
        "import os, signal, sys, time; [signal.signal(n, lambda *_: sys.exit(0)) for n in "
        "(signal.SIGINT, 15)]; os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    )
    assert run_group(python(child)) == (0, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_whole_group(number: int, tmp_path: Path) -> None:
    sleeping = CHILD + "; time.sleep(600)"
    code = (
        "import sys; from cluster.launch.backend import PlannedCommand; "
        "from cluster.launch.process_group import run_group; "
        f"print(run_group(PlannedCommand([sys.executable, '-c', {sleeping!r}])).code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    code, _ = process.communicate(timeout=PATIENCE)
    assert int(code) == -number  # by this signal, not by the one that comes after the grace
    assert not alive(child)


@pytest.mark.parametrize(
    ("code", "earlier", "words"),
    [
        (0, False, r"died \(exit code 0\); the reason stands above. Run it again to go on$"),
        (247, False, "it died"),
        (78, False, "it did not start; the reason stands above$"),
        # Refused in the folder of a run that is done.
        (78, True, "it did not start; the reason stands above$"),
    ],
)
def test_only_the_run_itself_says_that_it_is_done(
    code: int, earlier: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deepspeed launcher exits with 0 when its own helper was killed."""
    if earlier:
        RunFolder(tmp_path).mark_done({})
    with pytest.raises(RunFailed, match=words) as caught:
        train_by(Running(f"raise SystemExit({code})"), tmp_path, monkeypatch)
    assert caught.value.exit_code == (78 if code == 78 else 1)


def test_a_marker_from_before_this_start_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an extended run dies before its first step."""
    RunFolder(tmp_path).mark_done({"step": 70, "start": "earlier"})
    with pytest.raises(RunFailed, match=r"died \(exit code 3\)"):
        train_by(Running("raise SystemExit(3)"), tmp_path, monkeypatch)
    code = (
        f"from trainer.run_folder import RunFolder as R; R({str(tmp_path)!r}).mark_done({{'step': "
        "70, 'start': 'x'})"
    )
    train_by(Running(code), tmp_path, monkeypatch)


def test_who_died_and_how(tmp_path: Path) -> None:
    """From the ranks' last words; an earlier start's say nothing."""
    folder = RunFolder(tmp_path)
    old = {"section": "step", "step": 3, "host": "a", "pid": 1}
    folder.heartbeats.mkdir(parents=True)
    for rank in range(3):
        folder.heartbeat(rank).write_text(json.dumps(old))
    before = last_words(folder)
    assert "the reason stands above" in explain(folder, before, 1)
    lost = {**old, "section": "exit", "code": 1, "reason": "another rank went away at step 7"}
    folder.heartbeat(0).write_text(json.dumps(lost))
    folder.heartbeat(2).write_text(json.dumps({**old, "step": 7, "pid": 12, "host": "b"}))
    assert explain(folder, before, 256 - 9).startswith(
        "rank 2 (process 12 on b) died at step 7, ended by SIGKILL;"
    )
    assert "ended by SIGSEGV. Run it again" in explain(folder, before, 256 - 11)
    assert "without a word (exit code 1)" in explain(folder, before, 1)
    folder.heartbeat(1).write_text(json.dumps({**lost, "reason": "unexpected KeyError: 'x'"}))
    assert explain(folder, before, 1).startswith(
        "rank 1 on a crashed at step 3: unexpected KeyError: 'x'"
    )
