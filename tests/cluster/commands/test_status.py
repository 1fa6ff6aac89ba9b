"""`addp status` and `addp stop` on runs that train."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.supervise import history
from data_pipeline.storage import open_store
from tests.cluster.calling import addp
from tests.cluster.status.made import running
from tests.cluster.supervise.supervising import job
from tests.patience import PATIENCE, until
from tests.trainer.launching import MAGE
from tests.trainer.worlds import World
from tests.warm import warm_python
from trainer.run_folder import RunFolder

LONG = ("schedule.total=100000", "checkpoint.every=5", "checkpoint.keep=1")


def status(run: Path | str) -> dict[str, Any]:
    found = addp("status", run, "--json")
    assert found.code == 0, found.stderr
    return json.loads(found.stdout)  # type: ignore[no-any-return]


def becomes(run: Path | str, true: Callable[[dict[str, Any]], Any]) -> Any:
    """Look until the status is as it should be."""

    def look() -> dict[str, Any] | None:
        found = status(run)
        return found if true(found) else None

    return until(look, said=lambda: status(run), pause=0.1)


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    started: list[World] = []
    yield started
    for world in started:
        world.kill()


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A run that has come to its end, as far as its folder says."""
    run = running(tmp_path / "base-16")
    run.write("done.json", {"step": 100, "run": "a", "start": "b"})
    return run.path


def test_a_run_is_watched_stopped_and_found_dead(
    tokens: Path, tmp_path: Path, worlds: list[World]
) -> None:
    run, folder = tmp_path / "run", RunFolder(tmp_path / "run")
    overrides = (*MAGE, *LONG, f"data.tokens={tokens}")
    worlds.append(World(run, overrides, 2, None))
    worlds[0].wait_for(folder.metrics)
    found = becomes(run, lambda s: s["state"] == "running" and s["checkpoint"] and s["metrics"])
    assert found["total"] == 100_000 and found["step"] >= 5 and found["eta"] > 0
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1] and found["expected_ranks"] == 2
    assert found["ettr"]["ratio"] == 1 and found["starts"] == 1 and found["problems"] == []
    text = addp("status", run, "--prometheus").stdout
    samples = {s.name for f in text_string_to_metric_families(text) for s in f.samples}
    assert {"addp_run_step", "addp_run_loss", "addp_host_beat_timestamp_seconds"} <= samples
    assert "step" in addp("status", run).stdout

    stopped = addp("stop", run, "--wait")
    assert stopped.code == 75, stopped
    assert "saves at the next border of a step, and ends with exit code 75" in stopped.stdout
    assert worlds[0].wait().codes == [75, 75] and not folder.stop.exists()
    found = status(run)
    assert (found["state"], found["code"]) == ("stopped", 75)
    assert found["checkpoint"]["step"] == found["step"]

    again = addp("stop", run)
    assert again.code == 0 and "is not running (stopped" in again.stdout
    assert not folder.stop.exists()

    worlds.append(World(run, overrides, 2, None))
    becomes(run, lambda s: s["state"] == "running" and s["starts"] == 2)
    worlds[1].kill()
    found = becomes(run, lambda s: s["state"] == "dead")
    assert "ended without a word" in found["reason"] and found["ettr"]["lost_seconds"] > 0
    folder.stop.touch()  # of somebody who wanted to stop it just before it died
    late = addp("stop", run, "--wait")
    assert late.code == 1 and "would have stopped the next start" in late.stdout
    assert not folder.stop.exists()


@pytest.fixture
def uploading(tokens: Path, tmp_path: Path, bucket: str, worlds: list[World]) -> str:
    """The store of a run that trains."""
    url = f"{bucket}/runs/base-16"
    data = (f"data.tokens={tokens}", f"checkpoint.upload={url}", "checkpoint.lease=4")
    worlds.append(World(tmp_path / "run", (*MAGE, *LONG, *data), 2, None))
    worlds[0].wait_for(RunFolder(tmp_path / "run").metrics)
    return url


def test_a_supervised_run_is_stopped_for_good(tmp_path: Path) -> None:
    """Although its ranks remove STOP once they have saved."""
    words = ["steps=100000", "fault=1:6:kill:1", "removes=stop"]
    with job(tmp_path / "run", "--ranks", "2", words=words) as one:
        one.start(0)
        one.until(lambda: len(one.of(history.Progress)) == 2)
        found = becomes(one.run, lambda s: s["state"] == "running")
        assert (found["starts"], found["restarts"], found["expected_ranks"]) == (2, 1, 2)
        stopped = addp("stop", one.run, "--wait")
        assert stopped.code == 75, stopped
        assert one.wait() == 75 and len(one.of(history.Start)) == 2
        assert status(one.run)["state"] == "stopped" and not one.folder.stop.exists()


def test_a_run_is_followed_by_its_store(uploading: str, tmp_path: Path) -> None:
    """From a machine that does not see its folder. What is known there comes with uploads."""
    found = becomes(
        uploading,
        lambda s: s["state"] == "running" and s["copied"] and s["metrics"] and s["expected_ranks"],
    )
    assert (found["run"], found["source"]) == ("base-16", "store")
    assert found["checkpoint"] is None and found["copied"]["step"] % 5 == 0
    assert found["ranks"] == [] and found["expected_ranks"] == 2 and found["total"] == 100_000
    at_home = becomes(tmp_path / "run", lambda s: s["copied"])
    assert at_home["upload"] == uploading and at_home["problems"] == []
    assert "on the store: step" in addp("status", uploading).stdout


@pytest.mark.long
def test_a_run_is_stopped_by_its_store(uploading: str, tmp_path: Path, worlds: list[World]) -> None:
    """It looks for the object every 15 s."""
    becomes(uploading, lambda s: s["copied"])
    stopped = addp("stop", uploading, "--wait")
    assert stopped.code == 75 and "when it next looks at its store" in stopped.stdout
    assert worlds[0].wait().codes == [75, 75]
    assert list(open_store(uploading).list("STOP")) == []
    assert status(tmp_path / "run")["step"] == status(uploading)["copied"]["step"]
    assert "is not running (stopped" in addp("stop", uploading).stdout


@pytest.mark.long
def test_a_run_that_died_is_found_by_its_store(uploading: str, worlds: list[World]) -> None:
    """Its lock is not renewed. A STOP that it did not see is taken away."""
    becomes(uploading, lambda s: s["state"] == "running" and s["metrics"])
    assert addp("stop", uploading).code == 0
    worlds[0].kill()
    assert [entry.name for entry in open_store(uploading).list("STOP")] == ["STOP"]
    assert "was asked to stop before" in addp("stop", uploading).stdout
    found = becomes(uploading, lambda s: s["state"] == "dead")
    assert "does not renew its lock" in found["reason"]
    late = addp("stop", uploading, "--wait")
    assert late.code == 1 and "took STOP away" in late.stdout
    assert list(open_store(uploading).list("STOP")) == []


def test_a_store_that_does_not_answer_is_an_error(bucket: str) -> None:
    found = addp("status", f"{bucket}-that-is-not-there/run")
    assert found.code == 74 and "there is no bucket" in found.stderr
    empty = status(f"{bucket}/run")
    assert (empty["state"], empty["source"]) == ("new", "store")


def test_watching_ends_with_the_run(done: Path, tmp_path: Path) -> None:
    found = addp("status", done, "--watch", "--interval", 0.1, "--json")
    (line,) = found.stdout.splitlines()
    assert json.loads(line)["state"] == "done"
    assert "complete" in addp("status", done, "--watch").stdout
    target = tmp_path / "addp.prom"
    assert addp("status", done, "--watch", "--textfile", target).code == 0
    assert 'state="done"} 1.0' in target.read_text()
    assert addp("stop", done, "--wait").code == 0


def test_a_terminal_shows_the_run_until_ctrl_c(tmp_path: Path) -> None:
    """On a screen of its own; what was shown last stays on the usual one."""
    run = running(tmp_path / "base-16")
    terminal, inside = pty.openpty()
    words = ["-m", "cluster.cli", "status", str(run.path), "--watch", "--interval", "0.2"]
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [warm_python(), *words], stdin=inside, stdout=inside, stderr=inside, env=environment
    )
    os.close(inside)
    shown = b""
    while shown.count(b"Ctrl-C leaves") < 3:
        shown += os.read(terminal, 1 << 16)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the other side is closed
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    os.close(terminal)
    assert process.wait(PATIENCE) == 0
    before, _, after = shown.partition(b"\x1b[?1049l")
    assert b"\x1b[?1049h" in before and b"base-16" in after and b"interrupted" not in after


def test_a_picture_of_the_view(done: Path, tmp_path: Path) -> None:
    assert addp("status", done, "--svg", tmp_path / "status.svg").code == 0
    assert "checkpoint" in (tmp_path / "status.svg").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "--prometheus"),
        ("--watch", "--svg", "x"),
        ("--interval", "3"),
        ("--watch", "--prometheus"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], tmp_path: Path) -> None:
    assert addp("status", tmp_path, *words).code == 2


def test_files_that_cannot_be_written_are_said(done: Path, tmp_path: Path) -> None:
    for option in ("--textfile", "--svg"):
        found = addp("status", done, option, tmp_path)
        assert found.code == 78 and "cannot be written" in found.stderr
