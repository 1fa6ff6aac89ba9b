"""Which jobs of Slurm are queued again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch import slurm_task
from cluster.launch.requeue import JobState, decide, main
from cluster.supervise import history
from cluster.supervise.history import Joined, Start, Verdict, VerdictKind
from trainer.run_folder import RunFolder

RUNNING = JobState("RUNNING", "None")
SINCE = 1000.0


def start(time: float = SINCE + 1) -> Start:
    return Start(time=time, attempt=1, nodes=(), ranks=2, checkpoint=None)


def verdict(kind: VerdictKind, code: int, time: float = SINCE + 2) -> Verdict:
    return Verdict(time=time, attempt=1, verdict=kind, code=code, reason="")


@pytest.mark.parametrize(
    ("code", "stopped", "again"),
    [
        (0, False, False),
        (75, False, True),
        (75, True, False),
        (81, True, True),  # it stopped before that, and was started again
        (77, False, False),
        (78, False, False),
        (79, False, False),
        (80, False, False),
        (81, False, True),
        (1, False, True),
        (137, False, True),
    ],
)
def test_codes(code: int, stopped: bool, again: bool) -> None:
    made = decide(code=code, job=RUNNING, stopped=stopped, events=[start()], since=SINCE)
    assert (made.again, made.code) == (again, code)


@given(
    code=st.integers(0, 255),
    stopped=st.booleans(),
    state=st.sampled_from(["COMPLETING", "CANCELLED", "PENDING", "NODE_FAIL"]),
)
def test_a_job_that_was_cancelled_stays_so(code: int, stopped: bool, state: str) -> None:
    """`scontrol requeue` would bring it back, although its user has just cancelled it."""
    job = JobState(state, "None")
    assert not decide(code=code, job=job, stopped=stopped, events=[start()], since=SINCE).again


def test_a_job_that_reached_its_time_limit_goes_on() -> None:
    """Where saving took longer than the time between Slurm's signal and its end of the job."""
    job = JobState("COMPLETING", "TimeLimit")
    assert decide(code=75, job=job, stopped=False, events=[start()], since=SINCE).again
    assert not decide(code=0, job=job, stopped=False, events=[start()], since=SINCE).again


def test_the_verdict_goes_before_sruns_code() -> None:
    """srun ends with the highest code of all nodes: also of one that had lost touch."""
    events = [start(), verdict("done", 0)]
    assert decide(code=81, job=RUNNING, stopped=False, events=events, since=SINCE)[:2] == (False, 0)
    old = [verdict("done", 0, SINCE - 1), start()]
    assert decide(code=81, job=RUNNING, stopped=False, events=old, since=SINCE)[:2] == (True, 81)


def test_supervisors_that_do_not_start_are_not_started_for_ever() -> None:
    for code in (1, 81, 126, 137):
        made = decide(code=code, job=RUNNING, stopped=False, events=[start(SINCE - 1)], since=SINCE)
        assert not made.again and "did not start" in made.reason


def test_nodes_that_never_come_together_end_the_job() -> None:
    events: list[history.Event] = [start(SINCE - 99)]
    for number in range(4):
        events += [
            Joined(time=SINCE - 50 + number, attempt=1, node="a", host="a"),
            verdict("incomplete", 81, SINCE - 50 + number),
        ]
    events.append(Joined(time=SINCE + 1, attempt=1, node="a", host="a"))
    assert decide(code=81, job=RUNNING, stopped=False, events=events, since=SINCE).again
    events.append(verdict("incomplete", 81))
    made = decide(code=81, job=RUNNING, stopped=False, events=events, since=SINCE)
    assert not made.again and made.code == 81 and "5 jobs in a row" in made.reason
    events.append(start(SINCE + 3))
    assert decide(code=81, job=RUNNING, stopped=False, events=events, since=SINCE).again


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a scontrol on the path that writes down what it is asked, and knows a running job."""
    folder.mkdir()
    log = folder / "log"
    program = folder / "scontrol"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" >> '{log}'\necho JobState=RUNNING Reason=None BatchHost=n1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return log


def test_the_job_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = slurm(tmp_path / "programs", monkeypatch)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    history.append(run.supervision, start())
    words = ["--run", str(run.path), "--since", str(SINCE)]
    run.exit.write_text(json.dumps({"code": 75, "reason": "", "time": SINCE + 5, "stop": "file"}))
    assert main([*words, "--code", "75"]) == 75
    assert "requeue" not in log.read_text()  # the user's STOP of this job
    run.exit.write_text(json.dumps({"code": 75, "reason": "", "time": SINCE - 5, "stop": "file"}))
    assert main([*words, "--code", "75"]) == 75
    assert log.read_text().splitlines()[-1] == "requeue 17"


def test_a_users_stop_is_what_the_supervisors_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = slurm(tmp_path / "programs", monkeypatch)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    words = ["--run", str(run.path), "--since", str(SINCE), "--code", "75"]
    for by_user, times in ((True, 0), (False, 1)):
        ending = verdict("stopped", 75).model_copy(update={"by_user": by_user})
        history.append(run.supervision, ending)
        assert main(words) == 75
        assert log.read_text().count("requeue 17") == times


def test_an_end_without_a_verdict_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that supervisors that die each time before a start are counted."""
    log = slurm(tmp_path / "programs", monkeypatch)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    joined = Joined(time=SINCE + 1, attempt=0, node="a", host="a")
    run.supervision.write_text(joined.model_dump_json() + "\n" + '{"time": 1, "ev')
    for _ in range(2):  # the second time it has its verdict
        assert main(["--run", str(run.path), "--since", str(SINCE), "--code", "137"]) in (137, 81)
    _, ending = history.read(run.supervision)
    assert isinstance(ending, Verdict) and ending.verdict == "incomplete"
    assert log.read_text().count("requeue 17") == 2


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
    assert slurm_task.main(command) == code
    assert log.exists() == (code == 81 and coordinator == "lost")
    assert (log.read_text().count("requeue 17") if log.exists() else 0) == times
