"""The view of a run: it fits a terminal, and shows what a person looks for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from cluster.status import words
from cluster.status.snapshot import Recovery, Snapshot
from cluster.status.view import rank_groups, show
from tests.cluster.status.made import NOW, MadeRun, running


def shown(snapshot: Snapshot, width: int = 100) -> str:
    file = io.StringIO()
    show(snapshot, Console(file=file, width=width))
    return file.getvalue()


def test_a_run_at_a_glance(tmp_path: Path) -> None:
    run = running(tmp_path / "base-16", ranks=4)
    run.metrics(40, straggler=3, mfu=0.41)
    run.lines(
        "incidents/rank-00001.jsonl", [{"time": NOW - 60, "rank": 1, "event": "upload", "step": 7}]
    )
    text = shown(run.read())
    for part in (
        "base-16  running",
        "40.0%   step 40 of 100",
        "ETA 30 s",
        "500 ms a step",
        "1,200 images/s",
        "MFU 41.0%",
        "loss        4.025",
        "rank 3 on node0 holds the others up: 600 ms of its own a step",
        "61 GiB on the device",
        "step 30, 1 min ago",
        "90.0%   1 min 40 s of 16 min 40 s lost   1 restart",
        "started in  9.1 s: imports 5.5, meeting 0.4",
        "incidents of the last hour: 1",
        "0-3    node0  step       40  500 ms ago",
    ):
        assert part in text, f"{part!r} is not in\n{text}"
    assert "▇" in text and "█" in text


@pytest.mark.parametrize("width", [60, 80, 100, 240])
def test_a_thousand_ranks_fit(tmp_path: Path, width: int) -> None:
    run = MadeRun(tmp_path / "huge")
    run.environment(ranks=1024)
    run.metrics(40)
    for rank in range(1024):
        run.beat(rank, "step" if rank % 3 else "data", step=40 + rank % 2, host=f"node{rank // 8}")
    run.beat(500, "data", age=300, step=39, host="node62")
    snapshot = run.read()
    text = shown(snapshot, width)
    lines = text.splitlines()
    assert len(lines) < 40 and all(cell_len(line) <= width for line in lines)
    assert "rank 500" in text and "1,024 ranks on 128 hosts" in text
    assert [len(group) for group in rank_groups(snapshot.ranks)] == [1, 171, 171, 340, 341]


def test_ranks_in_trouble_come_first_and_too_many_groups_are_counted(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "run")
    run.environment(ranks=40)
    for rank in range(40):
        run.beat(rank, step=rank, age=700 if rank == 33 else 1)
    text = shown(run.read())
    table = text[text.index("last beat") :].splitlines()
    assert table[1].lstrip("│ ").startswith("33") and "limit 10 min" in table[1]
    assert "30 more ranks in 30 groups" in text


@pytest.mark.parametrize(
    "hostile", ["[bold red]no[/]", "[/]", "a\x1b[31m\nb", "\u202eevil", "🦄" * 90]
)
def test_texts_of_a_run_are_only_shown(tmp_path: Path, hostile: str) -> None:
    run = running(tmp_path / "run")
    run.beat(1, age=500, host=hostile, section="data")
    run.lines("incidents/rank-00000.jsonl", [{"time": NOW, "rank": 0, "event": hostile}])
    run.lines("incidents/rank-00001.jsonl", [{"time": NOW, "rank": 1, "event": "x", "at": hostile}])
    text = shown(run.read())
    assert "\x1b" not in text and "\u202e" not in text
    assert all(cell_len(line) <= 100 for line in text.splitlines())
    if hostile == "[/]":
        assert "rank 0  [/]" in text


@pytest.mark.parametrize("state", ["new", "starting", "dead", "stopped", "done", "hung", "failed"])
def test_every_state_has_a_picture(tmp_path: Path, state: str) -> None:
    run = running(tmp_path / "run")
    snapshot = run.read().model_copy(
        update={"state": state, "reason": "so it is", "since": NOW - 9}
    )
    assert "so it is (9.0 s ago)" in shown(snapshot)
    bare = snapshot.model_copy(
        update={
            "step": None,
            "total": None,
            "metrics": None,
            "checkpoint": None,
            "ettr": None,
            "ranks": [],
        }
    )
    assert "so it is" in shown(bare, 40)


def test_the_last_fault_and_how_the_run_came_back(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    recovery = Recovery(time=NOW - 90, kind="hang", noticed=31.0, stepped=12.5)
    found = run.read().model_copy(update={"recovery": recovery})
    assert "hang 1 min 30 s ago, 31 s after a sign of life; next step 12 s later" in shown(found)
    down = found.model_copy(update={"recovery": recovery.model_copy(update={"stepped": None})})
    assert "31 s after a sign of life; no new step since" in shown(down)


def test_a_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    run.metrics(40, loss="nan")
    found = run.read()
    assert found.metrics is not None and found.metrics.loss_is_finite is False
    assert "loss        nan" in shown(found)


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=200), st.integers(1, 60))
def test_a_sparkline_is_as_wide_as_it_may_be(values: list[float | None], width: int) -> None:
    line = words.sparkline(values, width)
    assert len(line) == (min(len(values), width) if any(v is not None for v in values) else 0)
    assert set(line) <= set(" ▁▂▃▄▅▆▇█")


@given(st.sets(st.integers(0, 2000)))
def test_ranges_name_or_count_every_rank(numbers: set[int]) -> None:
    text, _, more = words.ranges(numbers, most=4).partition(" and ")
    named = set[int]()
    for span in filter(None, text.split(", ")):
        first, _, last = span.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named <= numbers
    assert len(numbers) - len(named) == int(more.removesuffix(" more") or 0)


def test_durations_in_two_units() -> None:
    said = [words.duration(s) for s in (0.041, 1.44, 59.7, 65, 3600, 9000, 190_000, 1e8)]
    assert said == [
        "41 ms",
        "1.4 s",
        "1 min",
        "1 min 5 s",
        "1 h",
        "2 h 30 min",
        "2 d 4 h",
        "1,157 d",
    ]
