from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trainer.run_folder import START, RunFolder
from trainer.start_times import StartTimes


def test_the_parts_are_the_whole_start(tmp_path: Path) -> None:
    times = StartTimes()
    times.done("imports")
    times.done("networks")
    whole = times.seconds
    times.apart("data", within="networks", seconds=0.25)
    times.write(RunFolder(tmp_path), 7)
    written = json.loads((tmp_path / START).read_text())
    assert list(written["parts"]) == ["imports", "networks", "data"] and written["step"] == 7
    assert written["parts"]["data"] == 0.25 and times.seconds == pytest.approx(whole)
    # The process began before this test.
    assert (
        times.parts["imports"] > 0 and written["began"] < time.time() - times.parts["imports"] / 2
    )
    assert times.line().startswith(f"{whole:.1f} s: imports ")
