from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.launch import RunFailed, run_group, train
from trainer.run_folder import RunFolder

CHILD = (
    "import subprocess, sys, time; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(p.pid, flush=True)"
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


def test_orphans_are_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """As when the launcher dies and leaves its ranks behind."""
    assert run_group([sys.executable, "-c", CHILD]) == 0
    assert not alive(int(capfd.readouterr().out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_whole_group(number: int, tmp_path: Path) -> None:
    sleeping = CHILD + "; time.sleep(60)"
    code = f"from cluster.launch import run_group; import sys; run_group([sys.executable, '-c', {sleeping!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip
    assert process.stdout is not None
    child = int(process.stdout.readline())
    started = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=30)
    assert time.monotonic() - started < 8 and not alive(child)


def test_an_exit_code_of_zero_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deepspeed launcher exits with 0 when its own helper was killed."""
    monkeypatch.setattr("cluster.launch.launcher_command", lambda *_: [sys.executable, "-c", "pass"])
    with pytest.raises(RunFailed, match=r"died \(exit code 0\)"):
        train(tmp_path, 2, [])


def test_a_marker_from_before_this_start_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an extended run dies before its first step."""
    RunFolder(tmp_path).mark_done({"step": 70, "start": "earlier"})
    monkeypatch.setattr("cluster.launch.launcher_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RunFailed, match=r"died \(exit code 3\)"):
        train(tmp_path, 2, [])
    code = (
        f"from trainer.run_folder import RunFolder as R; R({str(tmp_path)!r}).mark_done({{'step': 70, 'start': 'x'}})"
    )
    monkeypatch.setattr("cluster.launch.launcher_command", lambda *_: [sys.executable, "-c", code])
    train(tmp_path, 2, [])
