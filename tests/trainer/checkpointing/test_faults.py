"""Kills at every named point of the save protocol, and storage that fails there: the run goes on by
itself, and ends with the undisturbed run's losses and weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cluster.launch.postmortem import explain
from tests.trainer.comparing import cut_back, incidents, same_end
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import World, finish, run_world
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.format import MANIFEST
from trainer.run_folder import RunFolder

KEEP = "checkpoint.keep=2"

# What is about to happen when the process is killed. The save of step 8 begins at 1, and is a
# checkpoint once 6 is done; with two kept, the save of step 12 removes that of step 4.
POINTS = {
    "1 folder of the unfinished checkpoint": (Sabotage("os.mkdir", ("step-00000008.",)), 4),
    "2 rank 0 opens its file": (Sabotage("open", ("step-00000008.", "rank-00000")), 4),
    "3 rank 1 opens its file": (Sabotage("open", ("step-00000008.", "rank-00001"), rank=1), 4),
    "4 manifest opened": (Sabotage("open", ("step-00000008.", MANIFEST)), 4),
    "5 manifest renamed": (Sabotage("os.rename", ("step-00000008.", MANIFEST)), 4),
    "6 checkpoint renamed": (Sabotage("os.rename", ("step-00000008.", "step-00000008'")), 4),
    "7 folder synced": (Sabotage("open", ("/checkpoints'",), nth=3), 8),
    "8 its step noted": (Sabotage("open", ("published.",), nth=4), 8),
    "9 old manifest removed": (Sabotage("os.remove", ("step-00000004", MANIFEST)), 12),
    "10 old folder removed": (Sabotage("shutil.rmtree", ("step-00000004",)), 12),
    "11 old file removed": (Sabotage("os.remove", ("rank-00000",)), 12),
    "12 network published": (Sabotage("open", ("network.safetensors", "tmp")), 12),
    "13 run marked as done": (Sabotage("os.rename", ("done.json",)), 12),
}
SHORT = (
    "3 rank 1 opens its file",
    "5 manifest renamed",
    "6 checkpoint renamed",
    "10 old folder removed",
)


@pytest.mark.parametrize(
    "point", [p if p in SHORT else pytest.param(p, marks=pytest.mark.long) for p in POINTS], ids=str
)
def test_killed_at(point: str, undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    sabotage, expected = POINTS[point]
    run, options = tmp_path / "run", (*MAGE, f"data.tokens={tokens}", "ema_decay=0.9", KEEP)
    codes, output = run_world(run, *options, sabotage=sabotage)
    assert codes[sabotage.rank] == -9 and not RunFolder(run).is_done, output
    assert codes[1 - sabotage.rank] == 1 and "Traceback" not in output
    assert output.count("another rank went away at step ") == 1, output
    catalog = LocalCatalog(RunFolder(run))
    visible = [step for step in catalog.steps() if (catalog.folder(step) / MANIFEST).exists()]
    assert catalog.verify(visible[0]).step == expected  # what is visible is valid
    output = finish(run, *options)
    assert f"resumed at step {expected} of 12" in output
    assert same_end(run, undisturbed)
    assert not list(RunFolder(run).checkpoints.glob("*.tmp"))


@pytest.mark.parametrize(
    ("event", "words", "rank"),
    [("open", ("step-00000008.", "rank-00001"), 1), ("os.rename", ("step-00000008'",), 0)],
    ids=["part", "rename"],
)
@pytest.mark.parametrize(
    ("code", "words_of_it"), [("ENOSPC", "No space left"), ("EROFS", "Read-only file system")]
)
def test_a_checkpoint_that_cannot_be_written_is_left_out(
    event: str,
    words: tuple[str, ...],
    rank: int,
    code: str,
    words_of_it: str,
    undisturbed: Path,
    tokens: Path,
    tmp_path: Path,
) -> None:
    """Training goes on, the incident is on record, and the next save succeeds."""
    run = tmp_path / "run"
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        "ema_decay=0.9",
        sabotage=Sabotage(event, words, code, 0, rank),
    )
    assert codes == [0, 0], output
    assert LocalCatalog(RunFolder(run)).steps() == [12, 4]
    (record,) = incidents(run, "checkpoint not saved")
    assert record["step"] == 8 and words_of_it in record["error"]
    (line,) = (line for line in output.splitlines() if "was not saved" in line)
    last_good = r"the last good one is of step 4, saved \d+ s ago \("
    assert words_of_it in line and re.search(last_good, line), line
    assert output.index(line) < output.index("step 12/12")
    assert same_end(run, undisturbed)


def test_a_rank_that_crashes_is_one_line_and_a_trace_in_a_file(
    tokens: Path, tmp_path: Path
) -> None:
    """An error that nobody foresaw on rank 1; rank 0 only loses it."""
    run = tmp_path / "run"
    sabotage = Sabotage("open", ("step-00000008.", "rank-00001"), "raise:no such luck", rank=1)
    codes, output = run_world(run, *MAGE, f"data.tokens={tokens}", sabotage=sabotage)
    assert codes == [1, 1] and "Traceback" not in output, output
    trace = run / "traces" / "rank-00001.txt"
    crash = (
        f"rank 1: error: unexpected ZeroDivisionError: no such luck; the trace is in {trace} "
        "(ADDP_DEBUG=1 shows it"
    )
    assert crash in output and "error: another rank went away at step " in output
    assert trace.read_text().endswith("ZeroDivisionError: no such luck\n")
    (record,) = incidents(run, "crash")
    assert record["rank"] == 1 and "no such luck" in record["error"]
    assert incidents(run, "another rank went away")
    assert RunFolder(run).read_exit()["code"] == 1  # type: ignore[index]
    words = explain(RunFolder(run), {}, 1)
    assert words.startswith("rank 1 on ") and "crashed at step" in words and "no such luck" in words


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sabotage = Sabotage("open", ("step-00000012.", "rank-00000"), "ENOSPC", 0)
    codes, output = run_world(run, *MAGE, f"data.tokens={tokens}", sabotage=sabotage)
    assert (
        codes == [74, 74]
        and "the checkpoint of step 12 was not saved" in output
        and "No space left" in output
    )
    assert not RunFolder(run).is_done
    assert "resumed at step 8" in finish(run, *MAGE, f"data.tokens={tokens}")


def test_a_run_folder_that_cannot_be_written_is_refused(tokens: Path, tmp_path: Path) -> None:
    sabotage = Sabotage("open", ("/run/lock",), "EROFS", 0)
    codes, output = run_world(tmp_path / "run", *MAGE, f"data.tokens={tokens}", sabotage=sabotage)
    assert codes == [74, 74] and "cannot be written: Read-only file system" in output


def test_ranks_that_see_different_folders_are_refused(tokens: Path, tmp_path: Path) -> None:
    """As where the run folder lies on a disk of its own on each machine."""
    sabotage = Sabotage("open", ("/attempt",), "ENOENT", 0, rank=1, sight=0.0)
    codes, output = run_world(tmp_path / "run", *MAGE, f"data.tokens={tokens}", sabotage=sabotage)
    assert (
        codes == [78, 78]
        and "ranks [1] do not see" in output
        and "storage that all machines share" in output
    )


def test_a_disk_that_fills_up_in_the_middle_of_a_file(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """The kernel refuses to let files grow over 200 KB, from the second save on; a rank's are 600
    KB."""
    run = tmp_path / "run"
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        "ema_decay=0.9",
        sabotage=Sabotage(limit=("step-00000008.", 200_000)),
    )
    assert codes == [0, 0], output
    assert LocalCatalog(RunFolder(run)).steps() == [12, 4]
    assert "File too large" in incidents(run, "checkpoint not saved")[0]["error"]
    assert same_end(run, undisturbed)


def test_a_slow_rank_delays_the_manifest(tokens: Path, tmp_path: Path) -> None:
    """Rank 1 takes two seconds to open its file: nothing is visible meanwhile, and training goes
    on."""
    run = tmp_path / "run"
    sabotage = Sabotage("open", ("step-00000004.", "rank-00001"), "sleep:2", rank=1)
    world = World(
        run, [*MAGE, f"data.tokens={tokens}", "checkpoint.every=4", "schedule.total=7"], 2, sabotage
    )
    catalog = LocalCatalog(RunFolder(run))
    world.wait_for(run / "metrics.jsonl")
    while len(RunFolder(run).read_metrics()) < 7:
        assert not catalog.steps()
    codes, output = world.wait()
    assert codes == [0, 0], output
    assert [catalog.verify(step).step for step in catalog.steps()] == [7, 4]


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("flip", "rank-00001.safetensors"),
        ("missing", "rank-00000.safetensors"),
        ("cut", MANIFEST),
        *(
            pytest.param(fault, name, marks=pytest.mark.long)
            for fault, name in (
                ("flip", "rank-00000.safetensors"),
                ("flip", MANIFEST),
                ("cut", "rank-00000.safetensors"),
                ("cut", "rank-00001.safetensors"),
                ("missing", "rank-00001.safetensors"),
                ("missing", MANIFEST),
            )
        ),
    ],
)
def test_a_damaged_checkpoint_is_gone_round(
    fault: str, name: str, undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "done.json").unlink()
    file = run / "checkpoints" / "step-00000012" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if fault == "flip" else content[:-20])
    if fault == "missing":
        file.unlink()
    options = (*MAGE, f"data.tokens={tokens}", "ema_decay=0.9", "checkpoint.keep=1")
    output = finish(run, *options, processes=1 if fault == "cut" else 2)
    assert "refused a checkpoint: step-00000012" in output and "resumed at step 8 of 12" in output
    assert incidents(run, "checkpoint refused")
    catalog = LocalCatalog(RunFolder(run))
    assert [catalog.verify(step).step for step in catalog.steps()] == [12]  # as before the damage
    assert fault == "cut" or same_end(run, undisturbed)


def test_none_valid_is_an_error_not_a_start_from_zero(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "done.json").unlink()
    catalog = LocalCatalog(RunFolder(run))
    for step in catalog.steps():
        (catalog.folder(step) / MANIFEST).write_text("{}")
    codes, output = run_world(run, *MAGE, f"data.tokens={tokens}", "ema_decay=0.9")
    assert (
        codes == [79, 79]
        and "3 checkpoints, but none is valid" in output
        and "starts at" not in output
    )


def test_a_second_run_on_the_folder_is_refused(tokens: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", (*MAGE, f"data.tokens={tokens}")
    slow = Sabotage("open", ("step-00000004.", "rank-00000"), "sleep:9")
    first = World(run, options, 1, slow)
    first.wait_for(run / "checkpoints")
    second = World(tmp_path / "other", [*options, f"run={run}"], 1, None).wait()
    assert second.codes == [78] and "is in use by process" in second.output
    codes, output = first.wait()
    assert codes == [0], output
    assert RunFolder(run).read_exit()["code"] == 0  # type: ignore[index]


def test_clock_jumps_change_nothing(undisturbed: Path, tokens: Path, tmp_path: Path) -> None:
    """The wall clock jumps by a day to and fro between any two looks at it, before and after a
    restart."""
    run, options = tmp_path / "run", (*MAGE, f"data.tokens={tokens}", "ema_decay=0.9")
    codes, output = run_world(run, *options, sabotage=Sabotage(clock=86400.0))
    assert codes == [0, 0], output
    cut = cut_back(run, tmp_path / "cut", 4)
    codes, output = run_world(cut, *options, sabotage=Sabotage(clock=86400.0))
    assert codes == [0, 0] and "resumed at step 4" in output, output
    assert same_end(run, undisturbed) and same_end(cut, undisturbed)
    assert all(
        row["lost_seconds"] >= 0 and row["train_seconds"] < 600
        for row in RunFolder(cut).read_metrics()
    )
