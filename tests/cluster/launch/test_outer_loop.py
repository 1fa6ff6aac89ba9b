"""A run is started again until its verdict is final. Commands stand in for supervisors here: what
these do is tested in tests/cluster/supervise, both together in test_supervised.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch import outer_loop
from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand, PlannedFile, free_port
from cluster.launch.backends import BACKENDS
from cluster.launch.hosts import Hosts, this_machine
from cluster.launch.launch import RunFailed
from cluster.launch.newcomers import Newcomers
from cluster.launch.outer_loop import Job, see_through
from cluster.supervise.policy import Rules
from model.errors import ADDPError, ConfigError
from tests.patience import PATIENCE, until
from trainer.run_folder import RunFolder

# Each start takes the next line of a plan: `EVENTS CODE`, the events it writes and how it ends.
SUPERVISOR = """
import json, sys
from pathlib import Path
run = Path(sys.argv[1])
left = (run / "script").read_text().splitlines()
(run / "script").write_text("\\n".join(left[1:]))
events, code = json.loads(left[0])
with (run / "supervision.jsonl").open("a") as file:
    for event in events:
        file.write(json.dumps({"time": 1.0, "attempt": 1, **event}) + "\\n")
sys.exit(code)
"""
START = {"event": "start", "nodes": [], "ranks": 1, "checkpoint": None}


def verdict(kind: str, code: int) -> dict[str, object]:
    return {"event": "verdict", "verdict": kind, "code": code, "reason": f"it is {kind}"}


class Scripted:
    """A backend whose command does what the run folder's script says next."""

    def check(self, request: LaunchRequest) -> None:
        pass

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        return LaunchPlan([PlannedCommand([sys.executable, "-c", SUPERVISOR, *request.arguments])])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_loop, "_BACKOFF", (0.0, 0.01))
    monkeypatch.setattr(outer_loop, "_LOOKS", (0.0,))
    monkeypatch.setitem(BACKENDS, "scripted", Scripted())


def job(run: Path, **more: object) -> Job:
    options: dict[str, object] = {
        "run": run,
        "backend": "scripted",
        "hosts": this_machine(1),
        "rules": Rules(max_restarts=3),
        "grace": 5.0,
        "port": free_port(),
        "request": lambda hosts: LaunchRequest("m", [str(run)], hosts),
    }
    return Job(**{**options, **more})  # type: ignore[arg-type]


def script(run: Path, *starts: tuple[list[dict[str, object]], int]) -> None:
    (run / "script").write_text("\n".join(json.dumps(start) for start in starts))


def starts_left(run: Path) -> int:
    return len((run / "script").read_text().splitlines())


def test_what_is_not_final_is_started_again(tmp_path: Path) -> None:
    incomplete = ([START, verdict("incomplete", 81)], 81)
    killed: tuple[list[dict[str, object]], int] = ([START], 255)  # no verdict at all
    script(tmp_path, incomplete, killed, killed, incomplete, ([verdict("done", 0)], 0))
    assert see_through(job(tmp_path)) is False
    assert starts_left(tmp_path) == 0


@pytest.mark.parametrize(
    ("kind", "code"), [("stopped", 75), ("failed", 78), ("failed", 77), ("gave up", 80)]
)
def test_a_final_verdict_is_the_end(kind: str, code: int, tmp_path: Path) -> None:
    """Whatever a launcher makes of the exit code."""
    script(tmp_path, ([START, verdict(kind, code)], 1), ([], 0))
    with pytest.raises(RunFailed, match=f"it is {kind}") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == code and starts_left(tmp_path) == 1


def test_a_verdict_of_an_earlier_launch_counts_for_nothing(tmp_path: Path) -> None:
    line = json.dumps({"time": 1.0, "attempt": 1, **verdict("done", 0)})
    (tmp_path / "supervision.jsonl").write_text(line + "\n")
    script(tmp_path, ([START], 1), ([verdict("stopped", 75)], 75))
    with pytest.raises(RunFailed, match="it is stopped"):
        see_through(job(tmp_path))


@pytest.mark.parametrize("code", [2, 77, 78, 79])
def test_what_no_start_can_mend_is_not_started_again(code: int, tmp_path: Path) -> None:
    script(tmp_path, ([], code), ([], 0))
    with pytest.raises(RunFailed, match="did not start; the reason stands above") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == code and starts_left(tmp_path) == 1


def test_starts_that_start_no_rank_are_not_repeated_for_ever(tmp_path: Path) -> None:
    started: tuple[list[dict[str, object]], int] = ([START], 255)
    silent: tuple[list[dict[str, object]], int] = ([], 255)
    script(tmp_path, silent, silent, started, silent, silent, silent, ([], 0))
    with pytest.raises(RunFailed, match="3 starts in a row started no rank") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == 80 and starts_left(tmp_path) == 1


def test_nodes_that_never_come_together_are_said_to_be_missing(tmp_path: Path) -> None:
    incomplete = ([verdict("incomplete", 81)], 255)
    script(tmp_path, incomplete, incomplete, incomplete, ([], 0))
    with pytest.raises(RunFailed, match="the last: it is incomplete") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == 81 and starts_left(tmp_path) == 1


def test_an_end_after_a_start_is_not_called_one_before_it(tmp_path: Path) -> None:
    script(tmp_path, ([START], 78), ([], 0))
    with pytest.raises(RunFailed, match="ended without a verdict") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == 78 and starts_left(tmp_path) == 1


class WithAFile(Scripted):
    """The same, with a file that is written before each start."""

    def plan(self, request: LaunchRequest) -> LaunchPlan:
        path = Path(request.arguments[0], "launch", "hostfile")
        return replace(super().plan(request), files=[PlannedFile(path, "a slots=1\n")])


def test_a_run_folder_that_fails_for_a_while_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder takes the place of a file that has to be written, for two starts."""
    monkeypatch.setitem(BACKENDS, "scripted", WithAFile())
    path, said = tmp_path / "launch" / "hostfile", list[str]()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            path.unlink()
            path.mkdir()
        if len(said) == 3:
            path.rmdir()

    monkeypatch.setattr(outer_loop, "_say", say)
    script(tmp_path, ([START, verdict("incomplete", 81)], 81), ([verdict("done", 0)], 0))
    see_through(job(tmp_path))
    assert "they are started again" in said[0] and len(said) == 3
    assert all("hostfile cannot be written" in text for text in said[1:])


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_folder_that_fails_for_good_is_the_end(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once before the first start, when somebody looks on."""
    monkeypatch.setitem(BACKENDS, "scripted", WithAFile())
    path, said = tmp_path / "launch" / "hostfile", list[str]()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            path.unlink()
            path.mkdir()

    monkeypatch.setattr(outer_loop, "_say", say)
    if not begun:
        path.mkdir(parents=True)
    script(tmp_path, ([START, verdict("incomplete", 81)], 81), ([verdict("done", 0)], 0))
    with pytest.raises(ADDPError, match="hostfile cannot be written") as caught:
        see_through(job(tmp_path))
    assert (caught.value.exit_code, len(said)) == ((74, 12) if begun else (78, 0))


def test_only_hosts_that_answer_get_a_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits while too few of them do."""
    answers = [{}, {"b": "gone", "c": "gone"}, {"b": "gone"}, {}]
    monkeypatch.setattr(outer_loop, "unreachable", lambda names: answers.pop(0))
    asked: list[list[str]] = []

    def request(hosts: Hosts) -> LaunchRequest:
        asked.append(hosts.names)
        return LaunchRequest("m", [str(tmp_path)], hosts)

    hosts = Hosts(dict.fromkeys("abc", 1))
    script(tmp_path, ([START, verdict("incomplete", 81)], 81), ([verdict("done", 0)], 0))
    rules = Rules(nodes=3, ranks=1, min_nodes=2)
    see_through(job(tmp_path, hosts=hosts, rules=rules, request=request, asks_hosts=True))
    assert asked == [["a", "b", "c"], ["a", "c"], ["a", "b", "c"]]  # the first: to check it


@pytest.mark.parametrize(("least", "checked"), [(2, ["a", "c"]), (3, ["a", "b", "c"])])
def test_a_launch_begins_without_hosts_that_it_can_do_without(
    least: int, checked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot, the backend's check says which one is missing, and nothing is started."""
    monkeypatch.setattr(outer_loop, "unreachable", lambda names: {"b": "gone"})

    class Checks(Scripted):
        def check(self, request: LaunchRequest) -> None:
            assert request.hosts.names == checked
            if "b" in request.hosts.names:
                raise ConfigError("b: gone")

    monkeypatch.setitem(BACKENDS, "scripted", Checks())
    script(tmp_path, ([START, verdict("done", 0)], 0))
    hosts, rules = Hosts(dict.fromkeys("abc", 1)), Rules(nodes=3, ranks=1, min_nodes=least)
    asked = job(
        tmp_path,
        hosts=hosts,
        rules=rules,
        request=lambda hosts: LaunchRequest("m", [str(tmp_path)], hosts),
        asks_hosts=True,
    )
    if least == 3:
        with pytest.raises(ConfigError, match="b: gone"):
            see_through(asked)
    else:
        see_through(asked)
    assert starts_left(tmp_path) == (least == 3)


@pytest.mark.parametrize("users", [False, True])
def test_a_host_that_is_back_gets_a_supervisor_with_the_next_start(
    users: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is asked to stop by its file, which is not the end of the launch, unless a user has
    made that file at this moment."""
    answers: list[dict[str, str]] = [{"b": "gone"}, {"b": "gone"}, {}, {}]
    monkeypatch.setattr(outer_loop, "unreachable", lambda names: answers.pop(0))

    def came(newcomers: Newcomers) -> list[str]:
        if users:
            RunFolder(tmp_path).stop.touch()
        return ["b"]

    monkeypatch.setattr(Newcomers, "came", came)
    asked: list[list[str]] = []

    def request(hosts: Hosts) -> LaunchRequest:
        asked.append(hosts.names)
        return LaunchRequest("m", [str(tmp_path)], hosts)

    class WaitsForStop(Scripted):
        def plan(self, request: LaunchRequest) -> LaunchPlan:
            if request.hosts.names == ["a", "b"]:
                return super().plan(request)
            code = (
                "import sys, time, pathlib; stop = pathlib.Path(sys.argv[1], 'STOP')\n"
                "while not stop.exists(): time.sleep(0.02)\n" + SUPERVISOR
            )
            words = [sys.executable, "-c", code, *request.arguments]
            return LaunchPlan([PlannedCommand(words)])

    monkeypatch.setitem(BACKENDS, "scripted", WaitsForStop())
    script(tmp_path, ([START, verdict("stopped", 75)], 75), ([START, verdict("done", 0)], 0))
    hosts, rules = Hosts(dict.fromkeys("ab", 1)), Rules(nodes=2, ranks=1, min_nodes=1)
    grows = job(tmp_path, hosts=hosts, rules=rules, request=request, asks_hosts=True)
    if users:
        with pytest.raises(RunFailed, match="it is stopped"):
            see_through(grows)
        assert asked[1:] == [["a"]]
    else:
        see_through(grows)
        assert asked[1:] == [["a"], ["a", "b"]] and not RunFolder(tmp_path).stop.exists()


def test_an_earlier_coordinator_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its port from the next one."""
    said: list[str] = []
    script(tmp_path, ([START, verdict("done", 0)], 0))
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        port = earlier.getsockname()[1]

        def say(text: str) -> None:
            said.append(text)
            assert starts_left(tmp_path) == 1
            earlier.close()

        monkeypatch.setattr(outer_loop, "_say", say)
        see_through(job(tmp_path, port=port))
    assert "of an earlier start still runs" in said[0] and starts_left(tmp_path) == 0


# Signals.

WAITING = """
import signal, sys, time
from pathlib import Path
run = Path(sys.argv[1])
def stop(*_):
    (run / "signalled").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(run / "ready").touch()
while not (run / "STOP").exists():
    time.sleep(0.02)
(run / "saw-stop").touch()
sys.exit(75)
"""
SEE_THROUGH = """
import sys
from pathlib import Path
from cluster.launch import outer_loop
from cluster.launch.backend import LaunchPlan, LaunchRequest, PlannedCommand, free_port
from cluster.launch.backends import BACKENDS
from cluster.launch.hosts import this_machine
from cluster.launch.outer_loop import Job, see_through
from cluster.supervise.policy import Rules
from model.entry import run_entry

run, over_ssh, *words = sys.argv[1:]
outer_loop.unreachable = lambda names: {}

class Waiting:
    def check(self, request): pass
    def plan(self, request): return LaunchPlan([PlannedCommand(words)])

BACKENDS["waiting"] = Waiting()
request = lambda hosts: LaunchRequest("m", [], hosts)
job = Job(run=Path(run), backend="waiting", hosts=this_machine(1), rules=Rules(), grace=600,
    port=free_port(), request=request, asks_hosts=over_ssh == "True")
run_entry(lambda: see_through(job))
"""


def start_waiting(run: Path, *words: str, over_ssh: bool = False) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SEE_THROUGH, str(run), str(over_ssh), *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [
            signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)
        ],
    )
    until((run / "ready").exists, alive=lambda: process.poll() is None)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_reaches_supervisors_elsewhere_by_a_file(number: int, tmp_path: Path) -> None:
    """The launcher itself is not signalled. What is left of the file is removed."""
    process = start_waiting(tmp_path, sys.executable, "-c", WAITING, str(tmp_path))
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75 and "it was asked to stop here" in said
    assert (tmp_path / "saw-stop").exists() and not (tmp_path / "signalled").exists()
    assert not RunFolder(tmp_path).stop.exists()


@pytest.mark.parametrize("over_ssh", [False, True])
def test_a_stop_reaches_a_supervisor_here_by_a_signal(over_ssh: bool, tmp_path: Path) -> None:
    """Past its launcher, which would give it 30 s only. But where its launcher has started others
    over ssh, as mpirun does, all get the file: a signal would be for this node alone."""
    package = tmp_path / "code" / "cluster" / "supervise"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(WAITING)
    launcher = (
        "import os, subprocess, sys; os.chdir(sys.argv[2]); "
        "words = [sys.executable, '-u', '-m', 'cluster.supervise', sys.argv[1]]; "
        "sys.exit(subprocess.run(words, env={**os.environ, 'PYTHONPATH': '.'}).returncode)"
    )
    words = (sys.executable, "-c", launcher, str(tmp_path), str(tmp_path / "code"))
    process = start_waiting(tmp_path, *words, over_ssh=over_ssh)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert (tmp_path / "signalled").exists() != over_ssh
    assert (tmp_path / "saw-stop").exists() == over_ssh
    assert not RunFolder(tmp_path).stop.exists()


def test_what_runs_is_asked_to_stop_where_we_are_killed(tmp_path: Path) -> None:
    process = start_waiting(tmp_path, sys.executable, "-c", WAITING, str(tmp_path))
    process.kill()
    process.communicate(timeout=PATIENCE)
    until((tmp_path / "signalled").exists)


def test_a_stop_while_nothing_runs_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_loop, "_BACKOFF", (60.0,))

    def say(text: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(outer_loop, "_say", say)
    script(tmp_path, ([START, verdict("incomplete", 81)], 81), ([verdict("done", 0)], 0))
    with pytest.raises(RunFailed, match="stop before it was started again") as caught:
        see_through(job(tmp_path))
    assert caught.value.exit_code == 75 and starts_left(tmp_path) == 1
