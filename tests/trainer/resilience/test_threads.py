"""A thread that dies is an incident, whatever it died of; a run that needs it saves and ends."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import run_world
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.saver import Saver
from trainer.config.schema import CheckpointSection
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import RunFolder


@pytest.mark.parametrize(("name", "needed"), [("watchdog", True), ("of some library", False)])
def test_a_thread_that_dies_is_an_incident(
    name: str, needed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.excepthook
    with ThreadWatch(RunFolder(tmp_path)) as watch:
        thread = threading.Thread(target=lambda: 1 / 0, name=name)
        thread.start()
        thread.join()
    (record,) = incidents(tmp_path, "thread died")
    assert record["thread"] == name and "division by zero" in record["error"]
    assert "ZeroDivisionError" in Path(record["trace"]).read_text()
    assert f"the thread {name} died: unexpected ZeroDivisionError" in capsys.readouterr().err
    assert (watch.lost is not None) == needed and threading.excepthook is before


def test_a_run_saves_and_ends_with_a_thread_that_it_needs(tokens: Path, tmp_path: Path) -> None:
    """Its uploads stop in the middle of one."""
    run, store = tmp_path / "run", tmp_path / "store"
    endless = ("schedule.total=100000", f"checkpoint.upload={store}")
    codes, output = run_world(
        run,
        *MAGE,
        f"data.tokens={tokens}",
        *endless,
        sabotage=Sabotage("os.link", ("rank-0",), "end"),
    )
    assert codes == [1, 1] and "the thread upload died: unexpected GeneratorExit" in output, output
    (record,) = incidents(run, "thread died")
    (stopped,) = incidents(run, "stopped")
    assert record["thread"] == "upload" and "start it again" in stopped["reason"]
    assert LocalCatalog(RunFolder(run)).steps()[0] == stopped["step"]


class Alone:
    """The one rank of a world."""

    rank, world_size = 0, 1

    def broadcast_from_rank0(self, work: Any) -> Any:
        return work()


def test_what_a_save_dies_of_is_raised_at_the_next_step(tmp_path: Path) -> None:
    """Not at the next save only, which may be hours away."""
    (tmp_path / "checkpoints").mkdir()
    none: Any = None
    section, alone = CheckpointSection(), Alone()
    saver = Saver(RunFolder(tmp_path), none, alone, section, attempt="first", uploader=None)  # type: ignore[arg-type]
    saver._published = saver._thread.submit(lambda: 1 // 0)  # type: ignore[arg-type]
    wait([saver._published])
    with pytest.raises(ZeroDivisionError):
        saver.commit()
    saver.close()
