"""The run folder, as one node sees it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node import disk
from trainer.preflight.node.disk import DiskLimits, DiskState, check_run_folder, judge_disk, measure

GOOD = DiskState(free=2**40, files=10**6, fsync=0.001, apart=0.0)


def test_a_folder_that_is_well_and_left_as_it_was(tmp_path: Path) -> None:
    found = list(check_run_folder(tmp_path / "runs" / "run"))
    assert {one.state for one in found} <= {"ok", "warning"}  # a full disk of ours may warn
    assert f"(will be made in {tmp_path})" in found[0].found
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file" in text(check_run_folder(tmp_path / "run" / "below"), "FAILED")


def test_a_folder_that_cannot_be_written() -> None:
    (found,) = check_run_folder(Path("/proc/runs"))
    assert found.state == "FAILED" and "cannot be written" in found.found and found.makes_unfit


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_fault_that_all_nodes_share(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "fsync", full)
    (found,) = check_run_folder(tmp_path)
    assert found.state == "FAILED" and "is full" in found.found and not found.makes_unfit


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ({}, "run folder", "ok"),
        ({"free": 10**8}, "disk space", "FAILED"),
        ({"free": 2 * 2**30}, "disk space", "warning"),
        ({"files": 10}, "disk space", "FAILED"),
        ({"fsync": 2.0}, "disk speed", "warning"),
        ({"apart": 60.0}, "clock", "warning"),
        ({"apart": -60.0}, "clock", "warning"),
    ],
)
def test_measures(change: dict[str, float], name: str, expected: str) -> None:
    found = list(judge_disk("RUN", GOOD._replace(**change), DiskLimits()))
    assert state(found, name) == expected
    assert all(one.shared for one in found if one.state == "FAILED")
    bad = [one for one in found if one.state != "ok"]
    assert len(bad) == (expected != "ok") and all(one.todo for one in bad)


def test_file_systems_that_count_no_files() -> None:
    assert len(list(judge_disk("RUN", GOOD._replace(files=None), DiskLimits()))) == 1


def test_measuring(tmp_path: Path) -> None:
    measured = measure(tmp_path)
    assert measured.free > 0 and measured.fsync >= 0 and not list(tmp_path.iterdir())
