"""What the benches of faults compute and find, without a run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from benchmarks import ettr
from benchmarks.faults import Outcome, table
from benchmarks.injections import FAULTS
from benchmarks.supervised import Process, processes_of


def test_random_faults_are_planned_within_the_hour_and_all_kinds_come_in_turn() -> None:
    for seed in range(50):
        planned = ettr.plan(60, 10, random.Random(seed))
        moments = [moment for moment, _ in planned]
        kinds = [name for _, name in planned]
        waits = [b - a for a, b in zip([0.0, *moments], moments, strict=False)]
        assert all(200 <= round(wait) <= 1200 for wait in waits)
        assert moments[-1] <= 3600 - 90
        assert len(set(kinds[: len(ettr.KINDS)])) == min(len(kinds), len(ettr.KINDS))
        assert set(kinds) <= set(FAULTS)
        assert planned == ettr.plan(60, 10, random.Random(seed))


def test_a_failure_shows_in_the_table() -> None:
    good = Outcome("rank-killed", 0, detection=0.4, recovery=10.0, total=10.4, equal=True)
    bad = Outcome("link-cut", 0, problems=["nothing was noticed"])
    lines = table([good, good, bad]).splitlines()
    assert lines[2].startswith("| a rank is SIGKILLed | 2 | 0.4 s, worst 0.4 s | 10.0 s")
    assert "bit-equal" in lines[2]
    assert "1 failed" in lines[3]


def test_processes_of_a_run_are_found_by_its_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)", f"run={tmp_path}"]
    process = subprocess.Popen(words, env={**os.environ, "RANK": "3"})
    try:
        while not (found := processes_of(tmp_path)):  # until it has its own command line
            assert process.poll() is None
        assert [p.pid for p in found] == [process.pid]
        assert found[0].rank is None, "a process that only names the run is no rank"
    finally:
        process.kill()
        process.wait()
    assert not processes_of(tmp_path)


def test_a_launcher_that_is_told_to_start_a_module_does_not_run_it() -> None:
    launcher = ["python", "-m", "deepspeed.launcher.launch", "--module", "cluster.supervise"]
    assert Process(1, launcher).runs("deepspeed.launcher.launch")
    assert not Process(1, launcher).runs("cluster.supervise")


def test_the_timeline_is_drawn(tmp_path: Path) -> None:
    fault = {"fault": "link-cut", "moment": 1100.0}
    rows = [
        {"kind": "began", "time": 1000.0},
        *({"kind": "step", "time": 1000.0 + t, "step": t} for t in range(0, 240, 2)),
        {"kind": "step", "time": 1240.0, "step": None},
        {"kind": "fault", "time": 1125.0, **fault},
        {"kind": "recovery", **fault, "detection": 11.0, "total": 31.0, "until": 1131.0},
        {"kind": "summary", "minutes": 4.0, "faults": 1, "ettr": 0.93},
    ]
    ettr.draw(rows, tmp_path / "ettr.png")
    assert (tmp_path / "ettr.png").read_bytes().startswith(b"\x89PNG")
