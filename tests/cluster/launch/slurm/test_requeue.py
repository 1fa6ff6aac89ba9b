"""Which jobs of Slurm are queued again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.slurm.requeue import JobState, batch_host, decide, job_state, main
from cluster.supervise import history
from cluster.supervise.history import Joined, Verdict
from tests.cluster.launch.slurm.jobs import SINCE, slurm, start, verdict
from trainer.run_folder import RunFolder

RUNNING = JobState("RUNNING", "None")


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


def test_what_a_user_writes_is_not_taken_for_slurms_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(tmp_path / "programs", monkeypatch, after=" WorkDir=/a/Reason=x Comment=a JobState=DONE")
    assert (job_state("17"), batch_host("17")) == (RUNNING, "n1")


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
