"""A record that cannot be written ends no run: it is said, kept, and complete once there is room
again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import run_world
from trainer import records
from trainer.board import Board
from trainer.checkpointing.catalog import LocalCatalog
from trainer.run_folder import RunFolder


def test_a_run_whose_records_cannot_be_written_trains_on(tokens: Path, tmp_path: Path) -> None:
    """Nothing but checkpoints, networks and done.json can be written once the run has begun."""
    run, names = (
        tmp_path / "run",
        "metrics.jsonl incidents exit.json heartbeats config.resolved environment tfevents",
    )
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        sabotage=Sabotage("open", (), "ENOSPC", 0, any_of=tuple(names.split())),
    )
    assert codes == [0, 0], output
    assert RunFolder(run).is_done and LocalCatalog(RunFolder(run)).steps() == [12, 8, 4]
    assert output.count("metrics.jsonl cannot be written: No space left on device") == 1
    for name in ("exit.json", "heartbeats/rank-00000.json", "config.resolved.yaml", "tensorboard/"):
        assert (
            sum(name in line and "cannot be written" in line for line in output.splitlines()) == 1
        ), (name, output)
    # What was never written is said at the end; there were no incidents.
    assert output.count("not complete") == 6


def test_records_are_whole_once_they_can_be_written_again(tokens: Path, tmp_path: Path) -> None:
    """No metric file for the first lines of the run: in the end no line is missing."""
    run = tmp_path / "run"
    sabotage = Sabotage("open", ("run/metrics.jsonl",), "ENOSPC", 0, times=5)
    codes, output = run_world(run, *MAGE, f"data.tokens={tokens}", sabotage=sabotage)
    assert codes == [0, 0], output
    assert [row["step"] for row in RunFolder(run).read_metrics()] == list(range(12))
    assert output.index("metrics.jsonl cannot be written") < output.index(
        "metrics.jsonl is written again"
    )


def test_a_piece_cut_short_goes_on_where_it_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel lets the files grow to 100 bytes only, as a disk that fills up; in a process of
    its own."""
    import subprocess
    import sys

    code = """
import resource, signal, sys
from pathlib import Path
from trainer import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = Path(sys.argv[1]) / "log"
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for number in range(20):
    records.append(log, b"line %03d\\n" % number)
assert log.stat().st_size == 100
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
records.append(log, b"the last\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"line {n:03d}" for n in range(20)] + ["the last"]
    assert [line.partition("log ")[2].split(":")[0][:16] for line in done.stderr.splitlines()] == [
        "cannot be writte",
        "is written again",
    ]


def test_a_run_folder_that_cannot_be_locked_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage without locks has other merits; the run goes on, and says what it goes without."""

    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr("trainer.run_folder.fcntl.lockf", lockf)
    folder.lock()
    (record,) = folder.read_incidents()
    assert record["event"] == "not locked" and "No locks available" in record["error"]


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_rewind_keeps_the_lines_that_wait_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And drops the later ones, wherever they are, as it does a line that is no record."""
    folder = RunFolder(tmp_path)
    records.append(folder.metrics, b'{"step": 0}\n[1]\n{"step": 1}\n{"step": 2}\n')
    with monkeypatch.context() as full:
        full.setattr("trainer.records.os.open", no_room)
        records.append(folder.metrics, b'{"step": 3}\n{"step": 4}\n')
    folder.rewind_metrics(4)
    records.append(folder.metrics, b'{"step": 4, "again": 1}\n')
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2, 3, 4]
    assert folder.read_metrics()[-1]["again"] == 1


def test_a_console_that_is_gone_ends_nothing(tokens: Path, tmp_path: Path) -> None:
    """Standard error on a full disk, as with `addp train ... 2> log`."""
    run = tmp_path / "run"
    codes, _ = run_world(
        run, *MAGE, f"data.tokens={tokens}", processes=1, sabotage=Sabotage(console="/dev/full")
    )
    assert codes == [0] and RunFolder(run).is_done


def test_event_files_are_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path, 0)
    for step in range(4):
        board.record(step, {"loss": step / 2})
    Board(tmp_path, 2).record(2, {"loss": 9.0})  # a start that went on from step 2
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 9.0),
    ]


def test_ages_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 100_000.0)
    words = [records.ago(100_000.0 - age).partition(" (")[0] for age in (-5, 59, 3599, 7260)]
    assert words == ["0 s ago", "59 s ago", "59 min ago", "2 h 1 min ago"]
