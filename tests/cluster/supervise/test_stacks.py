"""The stacks of real processes: one that sleeps, one that is stopped, one that py-spy may not read,
one that is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.supervise.grouping import report, summary
from cluster.supervise.stacks import SECONDS, RankStack, collect
from tests.patience import PATIENCE, until
from trainer.run_folder import RunFolder

# A rank as far as its stacks go: its main thread waits in `in_all_reduce`, or for a thread that is
# in `decode_image`.
RANK = """
import sys, threading, time
from pathlib import Path
from trainer.resilience.stacks import answer_with_stacks
from trainer.run_folder import RunFolder

def in_all_reduce():
    Path(sys.argv[3]).touch()
    while True:
        time.sleep(0.01)

def decode_image():
    in_all_reduce()

if "answers" in sys.argv:
    answer_with_stacks(RunFolder(sys.argv[1]), int(sys.argv[2]))
if "hidden" in sys.argv:
    import ctypes
    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
if "threads" in sys.argv:
    for n in range(150):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
if "deep" in sys.argv:
    def deeper(n):
        deeper(n - 1) if n else in_all_reduce()
    deeper(300)
in_all_reduce()
"""
COLLECT = """
import sys
from cluster.supervise.stacks import collect
from trainer.run_folder import RunFolder
found = collect({3: int(sys.argv[2])}, RunFolder(sys.argv[1]), float(sys.argv[3]))
print(found[0].model_dump_json())
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a rank that does what the words say, and wait until it does."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(rank: int, *words: str) -> subprocess.Popen[bytes]:
        there = tmp_path / f"there-{rank}"
        command = [sys.executable, "-c", RANK, str(tmp_path / "run"), str(rank), str(there), *words]
        processes.append(subprocess.Popen(command))
        until(there.exists, alive=lambda: processes[-1].poll() is None)
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def innermost(stack: RankStack) -> set[str]:
    (main,) = [thread for thread in stack.threads if thread.main]
    return {frame.function for frame in main.frames[:2]}


def without_the_right(folder: RunFolder, pid: int, seconds: float = PATIENCE) -> RankStack:
    """Collect in a process that may not look into others of its user."""
    command = [sys.executable, "-c", COLLECT, str(folder.path), str(pid), str(seconds)]
    if os.geteuid() == 0:
        assert shutil.which("setpriv"), "install util-linux"
        command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return RankStack.model_validate_json(done.stdout)


def test_processes_that_run_or_are_stopped(start: Start, folder: RunFolder) -> None:
    """Both are read from outside, and the stopped one is told apart."""
    running, stopped = start(0), start(1)
    stopped.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
    stacks = collect({1: stopped.pid, 0: running.pid}, folder, PATIENCE)
    assert [stack.source for stack in stacks] == ["py-spy", "py-spy"], stacks
    assert all("in_all_reduce" in innermost(stack) for stack in stacks)
    assert [stack.state == "T" for stack in stacks] == [False, True]
    assert summary(stacks).count("stopped by a signal") == 1
    assert "main thread\n    in_all_reduce" in report(stacks)
    assert running.poll() is None  # it was not harmed


def test_a_process_that_may_not_be_read_answers_itself(start: Start, folder: RunFolder) -> None:
    process = start(3, "answers", "hidden")
    for _ in range(2):  # what it wrote before is not taken for its answer
        stack = without_the_right(folder, process.pid)
        assert stack.source == "faulthandler" and "in_all_reduce" in innermost(stack), stack
    assert folder.stack(3).read_text().count("Current thread") == 2 and process.poll() is None


def test_a_process_that_would_die_of_the_signal_is_not_asked(
    start: Start, folder: RunFolder
) -> None:
    process = start(3, "hidden")
    stack = without_the_right(folder, process.pid)
    assert stack.source == "none" and "has not registered faulthandler" in stack.note
    assert process.poll() is None


def test_a_stopped_process_that_may_not_be_read(start: Start, folder: RunFolder) -> None:
    process = start(3, "answers", "hidden")
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    stack = without_the_right(folder, process.pid)
    assert stack.source == "none" and stack.state == "T" and "cannot answer" in stack.note
    assert "rank 3 without a stack (stopped by a signal; " in summary([stack])


def test_a_process_that_is_gone(folder: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (stack,) = collect({0: process.pid}, folder)
    assert (stack.source, stack.state, stack.note) == ("none", "", "the process is gone")


def test_stacks_are_bounded(start: Start, folder: RunFolder) -> None:
    (stack,) = collect({0: start(0, "deep", "threads").pid}, folder, PATIENCE)
    assert len(stack.threads) == 32 and len(stack.threads[0].frames) == 100
    assert len(stack.model_dump_json()) < 1 << 18
    assert "in_all_reduce" in innermost(stack)


def test_a_process_that_is_no_python(folder: RunFolder) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        (stack,) = collect({0: process.pid}, folder)
        assert stack.source == "none" and stack.note and process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_file_that_is_no_answer(start: Start, folder: RunFolder) -> None:
    """A FIFO in the place of the file holds up neither the rank nor the node."""
    folder.stacks.mkdir(parents=True)
    os.mkfifo(folder.stack(3))
    process = start(3, "answers", "hidden")
    stack = without_the_right(folder, process.pid, SECONDS)
    assert stack.source == "none" and process.poll() is None
