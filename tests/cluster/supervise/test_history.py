"""What a history says, and that nothing done to the file, or by a kill, makes it say more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.supervise import history
from cluster.supervise.history import Checkpoint, Event, Progress, Verdict
from tests.cluster.supervise.events import end, fault, start


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "supervision.jsonl"
    events: list[Event] = [
        start(1, 10.0),
        Progress(time=11, attempt=1, step=1, seconds=1.0),
        Checkpoint(time=12, attempt=1, step=4),
        fault(1, 13),
        history.Stacks(time=13, attempt=1, file="stacks/attempt-1.txt", summary="1 of 2 in a"),
        history.Left(time=14, attempt=1, node="b", host="b", reason="silent"),
        history.Joined(time=15, attempt=1, node="b", host="b"),
        end(1, 16, -9, 4),
        Verdict(time=17, attempt=1, verdict="gave up", code=80, reason="enough"),
    ]
    for event in events:
        history.append(path, event)
    assert history.read(path) == events
    assert history.read(tmp_path / "none") == []


def test_a_start_on_many_nodes_counts(tmp_path: Path) -> None:
    path, name = tmp_path / "supervision.jsonl", "a" * 200
    nodes = tuple(history.NodeName(node=f"{name}{n}", host=name) for n in range(4096))
    made = history.Start(time=1.0, attempt=1, nodes=nodes, ranks=8, checkpoint=None)
    history.append(path, made)
    assert history.read(path) == [made]


def test_a_sign_of_life_changes_nothing_but_the_time(tmp_path: Path) -> None:
    path = tmp_path / "supervision.jsonl"
    history.touch(path)
    assert not path.exists()
    history.append(path, start(1, 10.0))
    os.utime(path, (1.0, 1.0))
    history.touch(path)
    assert path.stat().st_mtime > 1.0 and history.read(path) == [start(1, 10.0)]


@given(cut=st.integers(0, 400), junk=st.binary(max_size=40).filter(lambda junk: b"\n" not in junk))
def test_a_line_that_was_cut_costs_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / "supervision.jsonl"
    first, second, third = start(1, 1.0), end(1, 2.0), start(2, 3.0)
    whole = [event.model_dump_json().encode() for event in (first, second)]
    path.write_bytes(whole[0] + b"\n" + (whole[1][: min(cut, len(whole[1]) - 1)] + junk))
    history.mend(path)
    history.append(path, third)
    assert [event for event in history.read(path) if event.time != 2.0] == [first, third]


def test_failures_are_counted_until_there_is_progress() -> None:
    """A history of starts that are killed together with their supervisors counts as well, being
    stopped neither counts nor forgives, and a verdict "gave up" forgives once."""
    events: list[Event] = [start(1, 1), end(1, 2)]
    assert history.failures_without_progress(events) == 1
    events += [start(2, 3)]
    assert history.failures_without_progress(events) == 2  # killed, as far as anybody knows
    assert history.failures_without_progress(events, newest=4) == 0
    events += [start(3, 5), end(3, 6, 75, None, failed=False)]
    assert history.failures_without_progress(events) == 2
    gave_up = Verdict(time=7, attempt=3, verdict="gave up", code=80, reason="")
    assert history.failures_without_progress([*events, gave_up]) == 0
    events += [start(4, 8), end(4, 9, 1, 4)]
    assert history.failures_without_progress(events) == 0
    events += [start(5, 10, 4), end(5, 11, 1, 4)]
    assert history.failures_without_progress(events) == 1


def test_a_node_is_troubled_by_the_faults_of_the_latest_failures() -> None:
    events: list[Event] = []
    for attempt in (1, 2):
        events += [start(attempt, attempt * 10), fault(attempt, attempt * 10 + 1)]
        events += [fault(attempt, attempt * 10 + 1), end(attempt, attempt * 10 + 2)]
    assert history.troubled_nodes(events) == {"b": 2}
    assert history.troubled_nodes(events, newest=100) == {}  # there was progress
