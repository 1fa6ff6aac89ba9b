"""Limits of containers and jobs, from the files of both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.node.cgroups import Limits, check_groups, read_limits

GIB = 2**30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_the_second_version(tmp_path: Path) -> None:
    """The tightest limit counts, of the group or of one that holds it."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/system.slice/job\n")
    root = tmp_path / "fs"
    write(
        root / "system.slice" / "job",
        memory__max="max",
        cpu__max="max 100000",
        pids__max="1000",
        pids__current="990",
        memory__events="low 0\noom_kill 2",
    )
    write(
        root / "system.slice",
        memory__max=str(4 * GIB),
        memory__current=str(GIB),
        cpu__max="250000 100000",
        pids__max="max",
    )
    assert read_limits(root, membership) == Limits(4 * GIB, GIB, 2.5, 10, 2)


def test_the_first_version(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n")
    root = tmp_path / "fs"
    write(
        root / "memory" / "job",
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(GIB),
    )
    write(root / "memory", memory__limit_in_bytes="9223372036854771712")
    write(root / "cpu,cpuacct" / "job", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert read_limits(root, membership) == Limits(2 * GIB, GIB, 0.5)


@pytest.mark.parametrize(
    ("limit", "usage", "prefix"),
    [
        ("memory__max", "memory__current", ""),
        ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_"),
    ],
)
def test_files_that_the_system_keeps_in_memory_take_none(
    limit: str, usage: str, prefix: str, tmp_path: Path
) -> None:
    """They fill the limit of each job that reads much, and a node with such a job is fit."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/\n" if not prefix else "5:memory:/\n")
    stat = f"anon {GIB}\n{prefix}active_file {GIB}\n{prefix}inactive_file {2 * GIB}"
    group = tmp_path / "fs" / ("memory" if prefix else "")
    write(group, **{limit: str(4 * GIB), usage: str(4 * GIB), "memory__stat": stat})
    assert read_limits(tmp_path / "fs", membership) == Limits(4 * GIB, GIB)


def test_the_group_with_least_memory_left_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    job, step = tmp_path / "fs" / "job", tmp_path / "fs" / "job" / "step"
    write(step, memory__max=str(4 * GIB), memory__current=str(GIB))
    write(job, memory__max=str(8 * GIB), memory__current=str(7 * GIB))
    assert read_limits(tmp_path / "fs", membership)[:2] == (8 * GIB, 7 * GIB)


def test_a_container_that_sees_its_group_at_the_root(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/../../somewhere\n")
    write(tmp_path / "fs", memory__max=str(GIB), memory__current="0")
    assert read_limits(tmp_path / "fs", membership).memory == GIB


def test_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "none", tmp_path / "none") == Limits()
    (found,) = check_groups(Limits())
    assert found.found == "none" and found.state == "ok"


@pytest.mark.parametrize(
    ("limits", "name", "expected", "words"),
    [
        (Limits(memory=4 * GIB, memory_used=4 * GIB), "memory", "FAILED", "0 B are left"),
        (Limits(memory=4 * GIB, memory_used=3 * GIB), "memory", "warning", "1.0 GiB are left"),
        (Limits(cores=0.25), "processor", "warning", "0.25 of a core"),
        (Limits(processes=20), "container limits", "warning", "only 20 more"),
        (Limits(killed=3), "memory", "warning", "3 processes were killed"),
    ],
)
def test_tight_limits(limits: Limits, name: str, expected: str, words: str) -> None:
    found = list(check_groups(limits))
    assert state(found, name) == expected
    assert words in text(found, expected)  # type: ignore[arg-type]
