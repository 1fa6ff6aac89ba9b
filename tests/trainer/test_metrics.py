"""What a run says about itself: over all ranks, and over all of its starts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.trainer.comparing import cut_back
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import finish, run_world
from trainer.resilience.state import TrainerState
from trainer.run_folder import RunFolder


def test_a_slow_rank_is_named(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*MAGE, f"data.tokens={tokens}", "schedule.total=4", "log_every=2")
    codes, output = run_world(run, *options, sabotage=Sabotage(slow=0.15))
    assert codes == [0, 0] and "slow: rank 1" in output, output
    rows = RunFolder(run).read_metrics()
    assert [row["straggler"] for row in rows] == [1] * 2
    # Two micro batches a step, each of which takes rank 1 so much longer.
    assert all(row["rank_seconds_max"] > max(0.3, row["rank_seconds_p50"]) for row in rows)


def test_true_training_time_and_what_restarts_cost(tokens: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    options = (*MAGE, f"data.tokens={tokens}")
    began = time.monotonic()
    finish(whole, *options)
    cut = cut_back(whole, tmp_path / "cut", 4)
    time.sleep(1.0)
    finish(cut, *options)
    past = time.monotonic() - began
    first, last = RunFolder(whole).read_metrics()[-1], RunFolder(cut).read_metrics()[-1]
    assert first["starts"] == 1 and first["lost_seconds"] == 0 and 0 < first["train_seconds"] < past
    assert last["starts"] == 2 and last["lost_seconds"] > 1 and 0 < last["train_seconds"] < past - 1
    assert all(a["train_seconds"] < b["train_seconds"] for a, b in zip(*_pairs(cut), strict=True))


def _pairs(run: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    rows = RunFolder(run).read_metrics()
    return rows[:-1], rows[1:]


def test_speed_is_by_all_time_between_metric_lines(tokens: Path, tmp_path: Path) -> None:
    """A save that training waits for counts, too; not as time in steps."""
    run, pause = tmp_path / "run", 0.3
    options = (*MAGE, f"data.tokens={tokens}", "checkpoint.asynchronous=false")
    codes, output = run_world(
        run,
        *options,
        "checkpoint.every=1",
        "schedule.total=4",
        processes=1,
        sabotage=Sabotage("os.rename", ("step-",), f"sleep:{pause}", nth=0),
    )
    assert codes == [0], output
    rows = RunFolder(run).read_metrics()
    for row in rows[1:]:  # the save of the step before lies between two lines
        assert row["seconds_per_step"] > pause and row["images_per_second"] < 8 / pause
        assert row["seconds_per_step_p95"] < row["seconds_per_step"] - 0.9 * pause
    assert rows[-1]["train_seconds"] < sum(row["seconds_per_step"] for row in rows) - 3 * pause


def test_a_clock_that_goes_back_costs_nothing() -> None:
    state = TrainerState(seen=time.time() + 3600)
    state.started()
    assert state.lost_seconds == 0 and state.starts == 1


def test_each_rank_gives_a_sign_of_life(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(run, *MAGE, f"data.tokens={tokens}")
    for rank in range(2):
        record = json.loads((run / "heartbeats" / f"rank-{rank:05d}.json").read_text())
        assert record["section"] == "exit" and record["step"] == 12 and record["pid"] > 0
        assert (record["code"], record["reason"]) == (0, "done")


def test_wandb_is_asked_for_by_name_where_it_is_missing(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from tests.trainer.launching import train

    code, output = train(
        tmp_path / "run", *MAGE, f"data.tokens={tokens}", "wandb=project", processes=1
    )
    assert code == 78 and "pip install addp[wandb]" in output
