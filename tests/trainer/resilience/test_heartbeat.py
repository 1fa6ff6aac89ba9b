"""A sign of life costs the main thread nothing, and says what the main thread did last."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import EVERY, Sabotage
from tests.trainer.worlds import run_world
from trainer.resilience.heartbeat import Heartbeat
from trainer.run_folder import NEAR_HEARTBEATS, RunFolder


def said(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.heartbeat(0).read_text())


def await_word(folder: RunFolder, section: str, step: int) -> dict[str, Any]:
    until(folder.heartbeat(0).exists)
    until(lambda: (said(folder)["section"], said(folder)["step"]) == (section, step))
    return said(folder)


def test_a_main_thread_that_is_silent_is_seen_by_an_old_time(tmp_path: Path) -> None:
    """However much its other threads live."""
    folder = RunFolder(tmp_path)
    with Heartbeat(folder, 0, hang=0) as heartbeat:
        await_word(folder, "setup", 0)
        before = time.time()
        heartbeat.beat("step", 3)
        last = await_word(folder, "step", 3)
        assert before <= last["time"] <= time.time()
        time.sleep(1.5)  # time for a write, if there were something to write
        assert said(folder) == last
        heartbeat.beat("step", 3)
        until(lambda: said(folder)["time"] != last["time"])


def test_it_writes_at_most_once_a_second(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with Heartbeat(folder, 0, hang=0) as heartbeat:
        steps, written = itertools.count(), set[float]()

        def was_written_twice() -> bool:
            heartbeat.beat("step", next(steps))
            if folder.heartbeat(0).exists():
                written.add(folder.heartbeat(0).stat().st_mtime)
            return len(written) == 2

        until(was_written_twice)
        assert max(written) - min(written) > 0.9


def test_the_last_word_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    heartbeat = Heartbeat(folder, 0, hang=0)
    heartbeat.leave(1, "before it began")
    assert not heartbeat.began and not folder.heartbeats.exists()
    for number in range(20):
        with Heartbeat(folder, 0, hang=0) as heartbeat:
            heartbeat.beat("step", number)
            heartbeat.leave(75, "stopped")
            heartbeat.beat("end", number)  # by a thread that closes something
        last = said(folder)
        assert (last["section"], last["step"], last["code"]) == ("exit", number, 75)
    time.sleep(1.2)
    assert said(folder) == last


def test_a_run_does_not_wait_for_the_storage_of_its_heartbeats(
    tokens: Path, tmp_path: Path
) -> None:
    """Each write takes a day."""
    codes, output = run_world(
        tmp_path / "run",
        *MAGE,
        f"data.tokens={tokens}",
        processes=1,
        sabotage=Sabotage("open", ("heartbeats/",), "sleep:86400", 0),
    )
    assert codes == [0] and RunFolder(tmp_path / "run").is_done, output
    assert "rank-00000.json lacks the end of this run" in output


def test_a_heartbeat_that_cannot_be_written_is_said_once_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.heartbeats.touch()  # a file in the place of the folder
    with Heartbeat(folder, 0, hang=0) as heartbeat:
        until(lambda: heartbeat._files[0]._fails)
        time.sleep(1.2)  # time for a second try, which says nothing
        folder.heartbeats.unlink()
        await_word(folder, "setup", 0)
        heartbeat.leave(0, "done")
    first, second = capsys.readouterr().err.splitlines()
    assert "rank-00000.json cannot be written: " in first and "is written again" in second


def test_a_supervisor_sees_signs_of_life_without_the_run_folder(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No heartbeat can be written there, and the last word is told all the same."""
    run, near = tmp_path / "run", tmp_path / "near"
    near.mkdir()
    monkeypatch.setenv(NEAR_HEARTBEATS, str(near))
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        sabotage=Sabotage("open", ("run/heartbeats/",), "ENOSPC", 0, rank=EVERY),
    )
    assert codes == [0, 0] and not list(run.glob("heartbeats/rank-*")), output
    for rank in range(2):
        word = json.loads((near / f"rank-{rank:05d}.json").read_text())
        assert (word["section"], word["code"], word["step"]) == ("exit", 0, 12)


def test_a_run_whose_heartbeat_dies_ends(tokens: Path, tmp_path: Path) -> None:
    """Whoever watches it would take the rank for one that hangs."""
    run = tmp_path / "run"
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        "schedule.total=100000",
        sabotage=Sabotage("open", ("heartbeats/rank-00000",), "end"),
    )
    assert codes == [1, 1] and "the thread heartbeat died: unexpected" in output, output
    (record,) = incidents(run, "thread died")
    assert record["thread"] == "heartbeat"
