"""Checks that hang or break are reported, and the others go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from model.errors import ConfigError
from trainer.preflight.finding import Finding, TooSlow, finding_of, guarded, size, within, worst


def test_a_check_that_hangs() -> None:
    never = threading.Event()

    def check() -> Iterator[Finding]:
        yield Finding("disk", "ok", "it was there")
        never.wait()

    found = guarded("disk", check, seconds=0.05)
    never.set()
    *before, last = found  # none where the machine was too busy to begin
    assert last.state == "FAILED" and [one.state for one in before] in ([], ["ok"])
    assert "no answer within 0.05 s" in last.text and "a mount" in last.todo
    with pytest.raises(TooSlow):
        within(0.01, threading.Event().wait)


def test_a_check_that_breaks_is_no_fault_of_the_machine() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("disk", "ok", "it was there")
        raise ValueError("odd")

    found = guarded("disk", check)
    assert [one.state for one in found] == ["ok", "warning"]
    assert found[1].found == "could not be looked at: ValueError: odd"


def test_an_error_that_was_written_for_people() -> None:
    def check() -> Iterator[Finding]:
        raise ConfigError("locks do not work there; give another folder")
        yield

    (found,) = guarded("data.cache", check)
    assert found.state == "FAILED" and found.found.startswith("locks do not work")


def test_what_a_finding_means() -> None:
    broken = Finding("memory", "FAILED", "none left", "buy some")
    assert broken.text == "none left; buy some" and broken.makes_unfit
    assert not broken._replace(shared=True).makes_unfit
    assert finding_of({**broken._asdict(), "more": 1}) == broken
    assert worst(["ok", "FAILED", "warning"]) == "FAILED" and worst([]) == "ok"
    assert [size(n) for n in (5, 1536, 2**30, 3 * 2**40)] == [
        "5 B",
        "1.5 KiB",
        "1.0 GiB",
        "3.0 TiB",
    ]
