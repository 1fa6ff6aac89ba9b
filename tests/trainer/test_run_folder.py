"""The lock of a run folder, which outlives the host of its holder on NFS."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.errors import ConfigError
from trainer.run_folder import RunFolder

HOLDER = """
import sys, time
from trainer import run_folder
run_folder.platform.node = lambda: sys.argv[2]
folder = run_folder.RunFolder(sys.argv[1])
folder.lock()
print("holds", flush=True)
time.sleep(float(sys.argv[3]))
"""


Hold = Callable[[RunFolder, str, float], None]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Have another process, of that host, hold the lock for so many seconds."""
    processes: list[subprocess.Popen[str]] = []

    def begin(folder: RunFolder, host: str, seconds: float) -> None:
        command = [sys.executable, "-c", HOLDER, str(folder.path), host, str(seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        assert processes[-1].stdout.readline() == "holds\n"

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_the_lock_of_another_host_is_waited_for(
    hold: Hold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be held for a host that died; the storage lets go of it later."""
    folder = RunFolder(tmp_path)
    hold(folder, "elsewhere", 1.5)
    folder.lock(wait_seconds=0, foreign_seconds=60)
    assert folder.is_locked
    (said,) = capsys.readouterr().err.splitlines()
    assert "on elsewhere; waits up to 60 s, in case that host has died" in said


def test_who_holds_the_lock_for_too_long_is_named(hold: Hold, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    hold(folder, "elsewhere", 60)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"in use by process \d+ on elsewhere"):
        folder.lock(wait_seconds=0, foreign_seconds=0.5)
    assert time.monotonic() - began >= 0.5


def test_a_lock_of_this_host_is_not_waited_for(hold: Hold, tmp_path: Path) -> None:
    """The kernel lets go of it when its holder ends."""
    folder = RunFolder(tmp_path)
    hold(folder, platform.node(), 60)
    with pytest.raises(ConfigError, match="is in use by"):
        folder.lock(wait_seconds=0.2, foreign_seconds=3600)
