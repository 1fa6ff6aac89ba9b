"""Progress on a terminal, and without one."""

from __future__ import annotations

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from data_pipeline.progress import SECONDS, Progress
from model.errors import ConfigError
from tests.patience import until


class Log(io.StringIO):
    """A file that can be waited for."""

    def wait_for(self, words: str) -> str:
        until(lambda: words in self.getvalue(), said=self.getvalue)
        return self.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS, "0.02")
    log = Log()
    with Progress(
        "tokenizing", 4000, "images", done=1000, console=Console(file=log, width=20)
    ) as progress:
        # A line though nothing moves.
        assert "ETA" not in log.wait_for("tokenizing: 1,000 of 4,000 images (25%)\n")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: progress.advance(), range(2000)))
        progress.note("3 quarantined")
        lines = log.wait_for(", 3 quarantined\n").splitlines()
        assert re.fullmatch(
            r"tokenizing: 3,000 of 4,000 images \(75%\), .*/s, ETA .*, 3 quarantined", lines[-1]
        )
        progress.set(4000)
    assert (
        log.getvalue()
        .splitlines()[-1]
        .startswith("tokenizing: 4,000 of 4,000 images (100%) in 0:0")
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_short_work_and_silent_ranks_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    with Progress("verifying", 2, "shards", console=Console(file=log)) as progress:
        progress.advance()
    monkeypatch.setenv(SECONDS, "0.001")
    with Progress("verifying", 2, "shards", console=Console(file=log), shown=False):
        time.sleep(0.05)
    assert log.getvalue() == ""


def test_work_that_fails_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS, "0.02")
    log = Log()

    def fail() -> None:
        with Progress("sampling", None, "images", console=Console(file=log)) as progress:
            progress.set(7)
            log.wait_for("sampling: 7 images, ")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert log.getvalue().splitlines()[-1].startswith("sampling: 7 images stopped after 0:0")


def test_a_bar_on_a_terminal() -> None:
    log = Log()
    terminal = Console(file=log, force_terminal=True, width=120)
    with Progress("tokenizing", 10, "images", console=terminal) as progress:
        progress.advance(10)
        progress.note("[1] quarantined")
    assert (
        "━" in log.getvalue()
        and "10/10" in log.getvalue()
        and "/s  [1] quarantined" in log.getvalue()
    )


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_wrong_interval(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SECONDS, text)
    with pytest.raises(ConfigError, match=f"{SECONDS}={text} is no number of seconds"):
        Progress("tokenizing", 1, "images")
