"""Non-finite steps, spikes, rewinds and divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.trainer.comparing import cut_back, incidents, losses, same_end, same_weights
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import World, finish, run_world
from trainer.checkpointing.catalog import LocalCatalog
from trainer.config.schema import HealthSection
from trainer.resilience.health import Spike, answer_to, judge, unfit
from trainer.resilience.state import Row, TrainerState, data_step, rewinds_before
from trainer.run_folder import RunFolder

REWIND = (
    "schedule.total=40",
    "health.spikes=rewind",
    "health.history=8",
    "health.consecutive=2",
    "checkpoint.keep=99",
    "log_every=2",
)


def rows(values: list[float], norm: float = 1.0) -> list[Row]:
    return [Row(loss=v, norm=norm, applied=math.isfinite(v)) for v in values]


def settled(section: HealthSection) -> TrainerState:
    state = TrainerState()
    assert judge(state, rows([2.0 + 0.01 * (i % 5) for i in range(32)]), 0, section) is None
    return state


def test_a_spike_is_several_steps_out_of_line() -> None:
    section = HealthSection(history=32, consecutive=3)
    assert judge(settled(section), rows([2.0, 9.0, 9.0, 2.0]), 32, section) is None  # two are none
    spike = judge(settled(section), rows([2.0, 9.0, 9.0, 9.0, 9.0]), 32, section)
    assert spike is not None and (spike.first, spike.last) == (33, 36) and "loss 9" in spike.reason
    spike = judge(settled(section), rows([2.0] * 3, norm=40.0), 32, section)
    assert spike is not None and "gradient norm 40" in spike.reason


def test_a_spike_may_lie_over_a_metric_line_and_a_checkpoint() -> None:
    section = HealthSection(history=32, consecutive=3)
    state = settled(section)
    assert judge(state, rows([2.0, 9.0, 9.0]), 32, section) is None
    state = TrainerState.model_validate_json(state.model_dump_json())
    assert judge(state, rows([9.0]), 35, section) == Spike(33, 35, judge_reason(section))


def judge_reason(section: HealthSection) -> str:
    spike = judge(settled(section), rows([9.0] * 3), 32, section)
    assert spike is not None
    return spike.reason


def test_nothing_is_judged_before_there_are_statistics() -> None:
    section = HealthSection(history=32)
    assert judge(TrainerState(), rows([2.0] * 4 + [50.0] * 8), 0, section) is None


def test_what_is_only_logged_becomes_the_new_level() -> None:
    section = HealthSection(history=32, spikes="log")
    state = settled(section)
    spikes = [judge(state, rows([9.0] * 8), 32 + 8 * i, section) for i in range(6)]
    assert spikes[0] is not None and spikes[-1] is None


def test_non_finite_steps_are_counted_and_end_a_run_that_has_nothing_else() -> None:
    section = HealthSection(max_nonfinite_steps=5)
    state = settled(section)
    nan = float("nan")
    assert judge(state, rows([nan, 2.0, nan, nan]), 32, section) is None
    assert (state.nonfinite, state.in_a_row) == (3, 2)
    spike = judge(state, rows([nan, nan, nan]), 36, section)
    assert spike is not None and spike.first == 34 and "without a finite gradient" in spike.reason


@pytest.mark.parametrize(
    ("spikes", "in_a_row", "rewinds", "answer"),
    [
        ("log", 4, 0, "none"),
        ("ignore", 5, 0, "stop"),  # nothing but skipped steps, whatever is done about spikes
        ("rewind", 0, 1, "rewind"),
        ("rewind", 5, 1, "rewind"),
        ("rewind", 0, 2, "stop"),
    ],
)
def test_what_a_run_does_about_a_spike(
    spikes: str, in_a_row: int, rewinds: int, answer: str
) -> None:
    section = HealthSection.model_validate(
        {"spikes": spikes, "max_rewinds": 2, "max_nonfinite_steps": 5}
    )
    assert answer_to(TrainerState(in_a_row=in_a_row), rewinds, section) == answer


def test_a_rewind_keeps_the_run_s_own_times() -> None:
    """What was trained since the checkpoint is lost."""
    left = TrainerState(train_seconds=10, lost_seconds=1, starts=3, seen=50)
    state = TrainerState(train_seconds=6, lost_seconds=0, starts=1, seen=20)
    state.after_rewind(left)
    assert (state.train_seconds, state.lost_seconds, state.starts, state.seen) == (6, 5, 3, 50)


def test_a_run_that_ends_without_finite_losses_or_skipped_most_of_its_steps_is_no_success() -> None:
    section = HealthSection(consecutive=3)
    for nonfinite, in_a_row, steps, words in (
        (2, 2, 40, None),
        (3, 3, 40, "its last 3 steps"),
        (1, 1, 1, "its last 1 steps"),
        (20, 0, 40, None),
        (21, 0, 40, "21 of its 40 steps were skipped"),
    ):
        reason = unfit(TrainerState(nonfinite=nonfinite, in_a_row=in_a_row), steps, section)
        assert reason is None if words is None else words in str(reason)


def test_rewinds_move_the_data_from_their_step_on() -> None:
    rewinds = [{"step": 10, "length": 3}, {"step": 10, "length": 2}, {"step": 20, "length": 1}]
    assert [data_step(rewinds, s) for s in (9, 10, 19, 20)] == [9, 15, 24, 26]
    assert rewinds_before(rewinds, 10) == [] and len(rewinds_before(rewinds, 11)) == 2


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(
    stage: int, tokens: Path, tmp_path: Path
) -> None:
    """Weights, moments and EMA stay as they were; the schedule goes by the step, and the
    data go on."""
    run = tmp_path / "run"
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        f"zero_stage={stage}",
        "ema_decay=0.9",
        "checkpoint.every=1",
        "checkpoint.keep=99",
        sabotage=Sabotage(nan=(5, 6)),
    )
    assert codes == [0, 0], output
    catalog = LocalCatalog(RunFolder(run))
    assert [catalog.verify(step).applied for step in (5, 7, 8)] == [5, 5, 6]
    with catalog.saved_state(5) as before, catalog.saved_state(7) as after:
        for key in before.manifest.state_keys:
            for name, shape in before.manifest.parameters.items():
                whole = (key, name, 0, torch.Size(shape).numel())
                assert torch.equal(before.read(*whole), after.read(*whole)), (key, name)
    table = RunFolder(run).read_metrics()
    assert table[-1]["skipped_steps"] == 2 and table[-1]["applied_steps"] == 10
    assert table[5]["loss"] == "nan" and math.isfinite(table[7]["loss"])


def test_a_checkpoint_may_lie_between_a_step_that_is_not_finite_and_its_metric_line(
    tokens: Path, tmp_path: Path
) -> None:
    """The step is in the checkpoint's state, where JSON has no number for it."""
    options = (*MAGE, f"data.tokens={tokens}", "log_every=6")
    codes, output = run_world(tmp_path / "run", *options, sabotage=Sabotage(nan=(2, 3)))
    assert codes == [0, 0], output
    cut = cut_back(tmp_path / "run", tmp_path / "cut", 4)
    assert "resumed at step 4" in finish(cut, *options)
    assert RunFolder(cut).read_metrics() and RunFolder(cut).read_metrics()[-1]["skipped_steps"] == 2
    assert same_weights(RunFolder(cut).network, RunFolder(tmp_path / "run").network)


def test_progress_of_earlier_versions_has_null_where_a_step_was_not_finite() -> None:
    row = TrainerState.model_validate(
        {"rows": [{"loss": None, "norm": None, "applied": False}]}
    ).rows[0]
    assert math.isnan(row.loss) and math.isnan(row.norm)


def test_a_spike_is_rewound_and_its_data_left_out(tokens: Path, tmp_path: Path) -> None:
    """Data steps 25 to 29 are bad. The run goes back to a checkpoint before them and on behind
    them, and being killed right after the rewind changes nothing."""
    bad, options = Sabotage(spikes=(25, 30)), (*MAGE, f"data.tokens={tokens}", *REWIND)
    run = tmp_path / "run"
    codes, output = run_world(run, *options, sabotage=bad)
    assert codes == [0, 0], output
    assert "spike at steps 25 to 27: loss" in output and "rewound to step 24" in output
    first = json.loads((run / "rewinds.json").read_text())
    assert sum(entry["length"] for entry in first) >= 5 and all(e["step"] == 25 for e in first)
    assert max(losses_of(run)) < 10
    catalog = LocalCatalog(RunFolder(run))
    assert all(
        catalog.verify(step).skipped == (first if step > 25 else []) for step in catalog.steps()
    )
    assert [record["action"] for record in incidents(run, "spike")] == ["rewind"] * len(first)
    assert len(RunFolder(run).read_metrics()) == 20 and RunFolder(run).is_done

    killed = tmp_path / "killed"
    world = World(killed, options, 2, bad)
    world.wait_for(killed / "rewinds.json")
    world.kill()
    codes, output = run_world(killed, *options, sabotage=bad)
    assert codes == [0, 0], output
    assert [row["loss"] for row in RunFolder(killed).read_metrics()] == [
        row["loss"] for row in RunFolder(run).read_metrics()
    ]


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in RunFolder(run).read_metrics()]


def test_a_run_that_spikes_again_and_again_stops_as_diverged(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        *REWIND,
        "health.max_rewinds=2",
        sabotage=Sabotage(spikes=(25, 999)),
    )
    assert codes == [77, 77], output
    assert "rewound 2 times before" in output and not RunFolder(run).is_done
    assert [r["action"] for r in incidents(run, "spike")] == ["rewind", "rewind", "stop"]
    assert RunFolder(run).read_exit()["code"] == 77  # type: ignore[index]


def test_a_spike_older_than_all_checkpoints_ends_the_run(tokens: Path, tmp_path: Path) -> None:
    """Nothing is left to go back to: the run stops, and leaves what it has as it is."""
    run = tmp_path / "run"
    kept = ("schedule.total=16", "checkpoint.every=1", "checkpoint.keep=1", "log_every=4")
    options = (*MAGE, f"data.tokens={tokens}", *REWIND, *kept)
    codes, output = run_world(run, *options, sabotage=Sabotage(spikes=(9, 14)))
    assert codes == [77, 77] and "no checkpoint is left from before them" in output, output
    assert [record["action"] for record in incidents(run, "spike")] == ["stop"]
    assert not (run / "rewinds.json").exists() and LocalCatalog(RunFolder(run)).steps()


def test_a_run_whose_last_losses_are_not_finite_is_not_done(tokens: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", (*MAGE, f"data.tokens={tokens}")
    codes, output = run_world(run, *options, sabotage=Sabotage(nan=(8, 9, 10, 11)))
    assert codes == [77, 77] and "its last 4 steps had no finite loss" in output, output
    assert (
        not RunFolder(run).is_done
        and not RunFolder(run).network.exists()
        and incidents(run, "unfit")
    )
    codes, output = run_world(run, *options)  # nor is it by being started again
    assert codes == [77, 77] and "the run is not done" in output, output


def test_an_outlier_of_one_step_is_left_alone(tokens: Path, tmp_path: Path) -> None:
    bad, options = Sabotage(spikes=(25, 26)), (*MAGE, f"data.tokens={tokens}", *REWIND)
    codes, output = run_world(tmp_path / "run", *options, sabotage=bad)
    assert codes == [0, 0] and not (tmp_path / "run" / "rewinds.json").exists(), output


def test_watching_for_spikes_changes_no_healthy_run(tokens: Path, tmp_path: Path) -> None:
    for name, extra in (("ignore", "health.spikes=ignore"), ("rewind", "health.spikes=rewind")):
        finish(tmp_path / name, *MAGE, f"data.tokens={tokens}", extra)
    assert losses(tmp_path / "ignore") == losses(tmp_path / "rewind") and same_end(
        tmp_path / "ignore", tmp_path / "rewind"
    )
