"""What a snapshot says of run folders in every state, and of records that lie."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from cluster.status.prometheus import prometheus_text
from cluster.status.read import open_run
from cluster.status.snapshot import Snapshot
from cluster.status.view import show
from cluster.supervise.history import End, Fault, NodeName, Progress, Start, Verdict
from model.errors import ConfigError
from tests.cluster.status.made import METRICS, NOW, MadeRun, running


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return MadeRun(tmp_path / "base-16")


def test_a_run_in_its_steps(tmp_path: Path) -> None:
    run = running(tmp_path / "base-16", ranks=4)
    found = run.read()
    assert (found.state, found.run, found.step, found.total) == ("running", "base-16", 40, 100)
    assert found.eta == pytest.approx(60 * 0.5)
    assert found.metrics is not None and found.metrics.loss == pytest.approx(5 - 39 / 40)
    assert len(found.metrics.losses) == 40
    assert found.checkpoint is not None
    assert (found.checkpoint.step, found.checkpoint.age) == (30, 60)
    assert found.ettr is not None and found.ettr.ratio == pytest.approx(0.9)
    assert [rank.rank for rank in found.ranks] == [0, 1, 2, 3]
    assert (found.starts, found.restarts, found.failures_without_progress) == (2, 1, None)
    assert found.problems == []


def test_a_folder_in_which_nothing_is(run: MadeRun) -> None:
    found = run.read()
    assert (found.state, found.step, found.metrics, found.ettr) == ("new", None, None, None)
    for name in ("elsewhere", "x" * 5000, "\0", "a\x1b[2Jb"):
        with pytest.raises(ConfigError, match="there is no run folder") as error:
            open_run(str(run.path / name))
        assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "age", "state"),
    [
        ("setup", 500, "starting"),
        ("setup", 700, "dead"),
        ("restore", 1700, "starting"),
        ("data", 100, "running"),
        ("data", 130, "dead"),
        ("step", 25, "running"),
        ("step", 35, "dead"),
        ("save", 500, "running"),
        ("end", 700, "dead"),
    ],
)
def test_each_section_has_its_own_patience(
    run: MadeRun, section: str, age: float, state: str
) -> None:
    run.environment()
    run.metrics(40)
    for rank in range(2):
        run.beat(rank, section, age)
    assert run.read().state == state


def test_a_rank_that_is_silent_among_others_hangs(tmp_path: Path) -> None:
    run = running(tmp_path / "run", ranks=8)
    run.beat(3, "data", age=200, host="node7")
    found = run.read()
    assert found.state == "hung"
    assert found.reason == "rank 3 on node7 silent for 200 s in data at step 40"
    assert [rank.rank for rank in found.ranks if rank.silent] == [3]


def test_a_process_that_has_ended_here_is_gone_at_once(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    with subprocess.Popen(["true"]) as ended:
        pass
    run.beat(1, age=4, host=platform.node(), pid=ended.pid)
    assert "rank 1" in run.read().reason and run.read().state == "hung"
    run.beat(1, age=4, host=platform.node(), pid=os.getpid())
    assert run.read().state == "running"
    run.beat(1, age=4, host="another machine", pid=ended.pid)
    assert run.read().state == "running"


@pytest.mark.parametrize(("code", "state"), [(75, "stopped"), (77, "failed"), (1, "failed")])
def test_an_attempt_that_ended(run: MadeRun, code: int, state: str) -> None:
    run.metrics(40)
    run.beat(0, "exit", 3000, code=code, reason="because")
    run.write("exit.json", {"code": code, "reason": "because", "time": NOW - 3000})
    found = run.read()
    assert (found.state, found.reason, found.code) == (state, "because", code)
    assert found.since == NOW - 3000


def test_what_a_run_left_before_does_not_count_once_it_lives(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    run.write("exit.json", {"code": 75, "reason": "stopped", "time": NOW - 3000})
    run.beat(7, age=90_000)  # of an attempt with more ranks
    found = run.read()
    assert found.state == "running" and len(found.ranks) == 2


def test_ranks_of_an_earlier_attempt_do_not_hang_in_the_next(run: MadeRun) -> None:
    run.environment(ranks=8)
    run.write("attempt", "7f3a", age=5)
    run.beat(0, "setup", age=1)
    run.beat(1, "step", age=500)
    found = run.read()
    assert found.state == "starting" and [rank.rank for rank in found.ranks] == [0]


def test_a_done_run(run: MadeRun) -> None:
    run.environment()
    run.metrics(99)
    run.write("done.json", {"step": 100, "run": "a", "start": "b"})
    found = run.read(NOW + 9e5)
    assert (found.state, found.step, found.eta, found.code) == ("done", 100, 0, 0)
    assert found.ettr is not None and found.ettr.ratio == pytest.approx(0.9)


def test_time_without_steps_is_lost(run: MadeRun) -> None:
    """But not that of a run that is stopped on purpose, until it starts again."""
    run.metrics(40, age=1000)
    for _ in range(2):
        run.beat(0, "restore", age=2)
        starting = run.read()
    assert starting.state == "starting" and starting.ettr is not None
    assert starting.ettr.lost_seconds == pytest.approx(1100)
    assert starting.ettr.ratio == pytest.approx(900 / 2000)
    run.beat(0, "exit", age=900, code=75)
    run.write("exit.json", {"code": 75, "reason": "STOP", "time": NOW - 900})
    stopped = run.read()
    assert stopped.state == "stopped" and stopped.ettr is not None
    assert stopped.ettr.ratio == pytest.approx(0.9)


NODES = (NodeName(node="0", host="node1"),)


def attempt(number: int, at: float, checkpoint: int | None) -> tuple[Any, ...]:
    """An attempt that makes steps and dies before a checkpoint."""
    return (
        Start(time=at, attempt=number, nodes=NODES, ranks=2, checkpoint=checkpoint),
        Progress(time=at + 5, attempt=number, step=31, seconds=5),
        Fault(time=at + 9, attempt=number, kind="death", reason="rank 1 ended by SIGKILL", rank=1),
        End(
            time=at + 10,
            attempt=number,
            code=-9,
            step=40,
            checkpoint=checkpoint,
            reason="rank 1 ended by SIGKILL",
            failed=True,
        ),
    )


def test_between_two_attempts_a_supervised_run_is_restarting(run: MadeRun) -> None:
    run.metrics(40, age=30)
    run.checkpoint(30, age=600)
    run.beat(0, age=25)
    run.supervised(*attempt(1, NOW - 60, 30), *attempt(2, NOW - 30, 30))
    found = run.read(NOW + 20)
    assert found.state == "restarting" and found.starts == 2
    assert found.failures_without_progress == 2
    assert run.read(NOW + 9000).state == "dead"


def test_a_supervisor_that_waits_for_nodes_lives(run: MadeRun) -> None:
    run.metrics(40, age=30)
    run.beat(0, age=25)
    run.supervised(*attempt(1, NOW - 60, 30))
    touched = NOW + 8950
    os.utime(run.folder.supervision, (touched, touched))
    assert run.read(NOW + 9000).state == "restarting"
    assert run.read(NOW + 9200).state == "dead"


def test_the_supervisors_faults_are_counted_and_listed(run: MadeRun) -> None:
    again = Start(time=NOW - 28, attempt=2, nodes=NODES, ranks=2, checkpoint=30)
    lost = Fault(time=NOW - 7200, attempt=0, kind="lost node", reason="node2 is silent", seconds=10)
    run.lines("incidents/rank-00000.jsonl", [{"time": NOW - 40, "rank": 0, "event": "upload"}])
    run.supervised(lost, *attempt(1, NOW - 40, 30), again)
    found = run.read()
    assert found.faults == {"lost node": 1, "death": 1}
    assert [(i.rank, i.event) for i in found.incidents] == [(0, "upload"), (1, "death")]
    assert found.incident_counts == {"upload": 1, "death": 1}
    assert found.recovery is not None
    assert (found.recovery.kind, found.recovery.stepped) == ("death", None)
    run.supervised(
        *(*attempt(1, NOW - 40, 30), again), Progress(time=NOW - 10, attempt=2, step=31, seconds=18)
    )
    recovery = run.read().recovery
    assert recovery is not None and recovery.stepped == pytest.approx(21)


@pytest.mark.parametrize("verdict", ["gave up", "failed", "incomplete", "stopped"])
def test_the_supervisors_verdict_is_the_state(run: MadeRun, verdict: Any) -> None:
    run.metrics(40, age=3000)
    run.beat(0, age=3000)
    run.supervised(
        *attempt(1, NOW - 3000, 30),
        Verdict(time=NOW - 2900, attempt=1, verdict=verdict, code=80, reason="3 failures\n\x1b[2J"),
    )
    found = run.read()
    assert (found.state, found.code, found.reason) == (verdict, 80, "3 failures [2J")


def test_a_verdict_does_not_count_once_the_run_was_started_without_supervisors(
    run: MadeRun,
) -> None:
    run.metrics(40, age=900)
    verdict = Verdict(time=NOW - 2900, attempt=1, verdict="gave up", code=80, reason="3 failures")
    run.supervised(*attempt(1, NOW - 3000, 30), verdict)
    run.write("attempt", "7f3a", age=2950)
    assert run.read().state == "gave up"
    run.write("attempt", "90bc", age=1000)
    assert run.read().state == "dead"
    run.write("exit.json", {"code": 77, "reason": "it diverged", "time": NOW - 900})
    assert (run.read().state, run.read().code) == ("failed", 77)


def test_an_attempt_that_runs_has_not_failed(run: MadeRun) -> None:
    """Though no checkpoint has come of it yet."""
    run.checkpoint(30, age=600)
    start = Start(time=NOW - 20, attempt=2, nodes=NODES, ranks=2, checkpoint=30)
    for begun, failures in (
        ([start], 0),
        ([*attempt(1, NOW - 60, 30), start], 1),
        ([*attempt(1, NOW - 60, 20), start], 0),
    ):
        run.supervised(*begun)
        assert run.read().failures_without_progress == failures
    run.checkpoint(35)
    run.supervised(*attempt(1, NOW - 60, 30), start)
    assert run.read().failures_without_progress == 0


def test_only_the_end_of_metrics_of_weeks_is_read(run: MadeRun) -> None:
    line = json.dumps(METRICS | {"step": 0, "time": NOW}) + "\n"
    last = json.dumps(METRICS | {"step": 77, "loss": 2.0, "time": NOW}) + "\n"
    path = run.path / "metrics.jsonl"
    with path.open("w") as file:
        file.truncate(1 << 40)  # a hole: reading it whole would never end
        file.seek(0, os.SEEK_END)
        file.write("\n" + 3 * line + last)
    found = run.read()
    assert found.step == 78 and found.metrics is not None and found.metrics.loss == 2.0


def test_incidents_of_the_last_hour_in_the_order_of_time(run: MadeRun) -> None:
    run.lines(
        "incidents/rank-00001.jsonl",
        [
            {"time": NOW - 7200, "rank": 1, "event": "crash"},
            {"time": NOW - 30, "rank": 1, "event": "hang", "section": "data", "seconds": 12},
        ],
    )
    run.lines("incidents/rank-00000.jsonl", [{"time": NOW - 60, "rank": 0, "event": "upload"}])
    run.write("incidents/rank-00002.jsonl", b"x" * (1 << 20), age=9000)
    run.write("incidents/notes.txt", "not ours")
    found = run.read()
    assert [(i.rank, i.event) for i in found.incidents] == [(0, "upload"), (1, "hang")]
    assert found.incidents[1].details == "section data, seconds 12"
    assert found.incident_counts == {"upload": 1, "hang": 1}


def test_many_incidents_are_counted_and_the_latest_are_listed(run: MadeRun) -> None:
    rows = [{"time": NOW - 500 + i, "rank": 0, "event": f"e{i}"} for i in range(300)]
    run.lines("incidents/rank-00000.jsonl", rows)
    found = run.read()
    assert sum(found.incident_counts.values()) == 300 and found.incident_counts["other"] == 280
    assert len(found.incidents) == 100
    assert found.incidents[-1].event == "e299"


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    run = running(tmp_path / "run", ranks=3)
    (run.path / "heartbeats/rank-00001.json").unlink()
    (run.path / "metrics.jsonl").unlink()
    os.mkfifo(run.path / "metrics.jsonl")
    run.beat(2, age=-300, host="node9")
    problems = run.read().problems
    assert problems == [
        "metrics.jsonl is no regular file",
        "only 2 of 3 ranks have given a sign of life",
        "the clock of node9 is 300 s ahead of this machine's",
    ]


def test_a_clock_that_is_ahead_keeps_no_rank_alive(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    ahead = {"time": NOW + 1e6, "section": "step", "step": 40, "host": "node1"}
    for rank in range(2):
        run.write(f"heartbeats/rank-{rank:05d}.json", ahead, age=500)
    assert run.read().state == "dead"


# Records that lie.

NAMES = (
    "metrics.jsonl",
    "supervision.jsonl",
    "incidents/rank-00000.jsonl",
    "incidents.jsonl",
    "heartbeats/rank-00000.json",
    "heartbeats/rank-00001.json",
    "exit.json",
    "done.json",
    "run.json",
    "environment.json",
    "start.json",
    "config.resolved.yaml",
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["nan", "-inf", "\x1b[2J\x07", "\u202e", "9" * 5000, NOW, NOW - 5, 10**400, 1e17, 10**17]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    *METRICS,
    *("step", "time", "section", "host", "pid", "code", "reason", "rank", "event", "verdict"),
    *("attempt", "nodes", "ranks", "checkpoint", "seconds", "run", "world_size", "total_steps"),
    *("kind", "failed", "schedule", "upload", "lease", "parts"),
)
RECORDS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Random bytes, or lines of JSON of hostile values, perhaps cut."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    lines = [json.dumps(row) for row in draw(st.lists(RECORDS, max_size=4))]
    content = "\n".join(lines).encode()
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), contents(), min_size=1))
def test_no_record_breaks_a_snapshot(tmp_path: Path, files: dict[str, bytes]) -> None:
    run = running(tmp_path / "run")
    for name in NAMES:
        (run.path / name).unlink(missing_ok=True)
    for name, content in files.items():
        run.write(name, content)
    found = run.read()
    text = found.model_dump_json()
    assert Snapshot.model_validate_json(text) == found
    assert "NaN" not in text and "Infinity" not in text
    assert all(word.isprintable() for word in strings(found.model_dump()))
    view = io.StringIO()
    show(found, Console(file=view, width=80))
    assert "run" in view.getvalue() and "\x1b" not in view.getvalue()
    assert list(text_string_to_metric_families(prometheus_text(found).decode()))


def strings(value: Any) -> list[str]:
    """All texts in a document."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"step":' * 50_000, b'{"step": ' + b"9" * 100_000 + b"}", b"\x00" * 100_000],
    ids=["deep lists", "deep mappings", "a long number", "zeros"],
)
def test_no_shape_of_json_breaks_a_snapshot(tmp_path: Path, content: bytes) -> None:
    run = running(tmp_path / "run")
    for name in NAMES:
        run.write(name, content)
    assert run.read().model_dump_json()
