"""Processes as the kernel shows them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from model import processes
from tests.patience import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(86_400)"]
ORPHAN = """
import os, signal, subprocess, sys
from model.processes import signal_at_end_of_parent
tie = lambda: signal_at_end_of_parent(signal.SIGKILL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(86_400)"],
                         stdout=subprocess.DEVNULL, preexec_fn=tie)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_process_that_lives_stops_and_ends() -> None:
    process = subprocess.Popen(SLEEP)
    try:
        until(lambda: processes.command_of(process.pid).split(b"\0")[1:2] == [b"-c"])
        assert processes.parent_of(process.pid) == os.getpid()
        assert processes.start_of(process.pid) >= processes.start_of(os.getpid()) > 0
        process.send_signal(signal.SIGSTOP)
        until(lambda: processes.state_of(process.pid) == "T")
    finally:
        process.kill()
    until(lambda: processes.state_of(process.pid) == "Z")
    assert processes.start_of(process.pid) == 0  # it has ended, and is not waited for
    process.wait()
    gone = process.pid
    assert (processes.state_of(gone), processes.parent_of(gone)) == ("", None)
    assert (processes.start_of(gone), processes.command_of(gone)) == (0, b"")
    assert processes.command_of(None) == b""


def test_a_machine_is_the_same_for_all_its_processes() -> None:
    command = [sys.executable, "-c", "from model.processes import machine; print(machine())"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert said == processes.machine() != ""


def test_a_child_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", ORPHAN]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert processes.start_of(child) > 0
    parent.kill()
    parent.communicate()
    until(lambda: processes.start_of(child) == 0)


def test_a_launcher_that_is_killed_is_gone() -> None:
    """What somebody starts by hand, from a shell that is no launcher, outlives that shell."""
    words = ["sh", "-c", "sleep 60 & echo $!; wait", "a.launcher"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        try:
            watched = processes.Launcher([b"a.launcher"], pid=child)
            by_hand = processes.Launcher([b"another"], pid=child)
            assert not watched.is_gone
            launcher.kill()
            until(lambda: watched.is_gone)
            assert not by_hand.is_gone
        finally:
            os.kill(child, signal.SIGKILL)
