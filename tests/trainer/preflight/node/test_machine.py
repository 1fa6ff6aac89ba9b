"""Memory, limits, clock and processor: each can be wrong."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node.machine import (
    check_clock,
    check_limits,
    check_memory,
    check_processor,
    check_shared_memory,
    soft_limits,
)

UNLIMITED = resource.RLIM_INFINITY
FREE = {"files": 65_536, "processes": UNLIMITED, "locked": UNLIMITED, "core": 0}


@pytest.mark.parametrize(
    ("available", "expected"), [(2**24, "FAILED"), (2**30, "warning"), (2**36, "ok")]
)
def test_memory(available: int, expected: str) -> None:
    assert state(check_memory(available), "memory") == expected


def test_what_this_machine_says() -> None:
    for found in (check_memory(), check_limits(soft_limits(), False), check_clock()):
        assert all(one.name and one.found for one in found)


@pytest.mark.parametrize(("gpus", "expected"), [(0, {"ok", "warning"}), (10**9, {"FAILED"})])
def test_shared_memory(gpus: int, expected: set[str], tmp_path: Path) -> None:
    """The more GPUs, the more of it NCCL takes; no machine has enough for so many."""
    assert state(check_shared_memory(gpus, tmp_path), "shared memory") in expected


def test_no_shared_memory(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert state(check_shared_memory(8, none), "shared memory") == "FAILED"
    assert state(check_shared_memory(0, none), "shared memory") == "warning"
    assert "mount a tmpfs" in text(check_shared_memory(8, none), "FAILED")


@pytest.mark.parametrize(
    ("limits", "infiniband", "expected", "words"),
    [
        ({}, True, "ok", ""),
        ({"files": 100}, False, "FAILED", "may open 100 files"),
        ({"files": 1024}, False, "warning", "ulimit -n"),
        ({"files": UNLIMITED}, False, "ok", ""),
        ({"processes": 100}, False, "warning", "ulimit -u"),
        ({"locked": 65_536}, True, "warning", "InfiniBand locks"),
        ({"locked": 65_536}, False, "ok", ""),
    ],
)
def test_limits(limits: dict[str, int], infiniband: bool, expected: str, words: str) -> None:
    found = list(check_limits({**FREE, **limits}, infiniband))
    assert state(found, "limits") == expected
    if expected != "ok":
        assert words in text(found, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "kept", "expected", "words"),
    [
        (0.0, True, "FAILED", "1970-01-01"),
        (5e9, True, "FAILED", "2128"),
        (1.8e9, True, "ok", "2027-01-15 08:00:00 UTC, kept by a time server"),
        (1.8e9, False, "ok", "not known to be kept"),
    ],
)
def test_clocks(now: float, kept: bool, expected: str, words: str) -> None:
    found = list(check_clock(now, kept))
    assert state(found, "clock") == expected and words in found[0].text


def test_processors(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("processor: 0\nflags : sse avx2\n")
    new.write_text("processor: 0\nflags : sse avx2 avx512_bf16\n")
    assert state(check_processor(0, old), "processor") == "warning"
    assert "set precision=fp32" in text(check_processor(0, old), "warning")
    assert state(check_processor(8, old), "processor") == "ok"  # the GPUs compute
    assert state(check_processor(0, new), "processor") == "ok"
    assert "cannot be read" in text(check_processor(0, tmp_path / "none"), "ok")
