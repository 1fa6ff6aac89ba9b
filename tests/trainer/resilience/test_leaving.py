"""An error on one rank: its words come before anything that can block, and all ranks end within
seconds."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.trainer.comparing import incidents
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.worlds import Ranks
from trainer.pretrain import run_and_leave
from trainer.resilience.leaving import leave
from trainer.run_folder import RunFolder


def _block(*_: Any) -> NoReturn:
    while True:
        time.sleep(1)


def raising(arguments: list[str]) -> None:
    """Rank 1 fails in its third step while rank 0 sums gradients; to close an engine blocks, as
    NCCL's can."""
    from trainer.engine import engine
    from trainer.objectives import mage
    from trainer.resilience import leaving

    leaving._SECONDS = 2.0
    original = mage.MageObjective.inputs

    def inputs(own: Any, batch: Any, step: int, device: Any) -> Any:
        if step == 2 and os.environ["RANK"] == "1":
            time.sleep(0.5)  # so that rank 0 is in the exchange
            raise ZeroDivisionError("no such luck")
        return original(own, batch, step, device)

    mage.MageObjective.inputs = inputs  # type: ignore[method-assign]
    engine.Engine.close = _block  # type: ignore[method-assign]
    run_and_leave(arguments)


def raising_without_a_disk(arguments: list[str]) -> None:
    """The same, and the storage on which the trace would be written does not answer."""
    sys.addaudithook(
        lambda event, at: _block() if event == "open" and "/traces/" in str(at[0]) else None
    )
    raising(arguments)


def stuck_at_the_end(arguments: list[str]) -> None:
    """A run that is asked to stop, and whose engine cannot be closed."""
    from trainer.engine import engine
    from trainer.resilience import leaving

    leaving._SECONDS = 2.0
    engine.Engine.close = _block  # type: ignore[method-assign]
    run_and_leave(arguments)


def stopping_with_words(arguments: list[str]) -> NoReturn:
    """As some libraries end a process."""
    leave(lambda: sys.exit("no such library"))


def test_words_of_an_exit_are_said(tmp_path: Path) -> None:
    codes, output = Ranks(stopping_with_words, [], 1, tmp_path / "log").wait()
    assert codes == [1] and output == "no such library\n"


@pytest.mark.parametrize(
    "main", [raising, raising_without_a_disk], ids=["engine", "engine and disk"]
)
def test_an_error_is_said_before_anything_blocks(main: Any, tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [f"run={run}", *SMALL, *MAGE, f"data.tokens={tokens}"]
    codes, output = Ranks(main, arguments, 2, tmp_path / "log").wait()
    assert codes == [1, 1], output
    if main is raising:
        said = (
            "rank 1: error: unexpected ZeroDivisionError: no such luck; the trace is in "
            f"{run / 'traces'}"
        )
        assert said in output and "error: another rank went away at step 2" in output, output
        assert (
            "Traceback" not in output
            and incidents(run, "crash")
            and RunFolder(run).read_exit()["code"] == 1
        )  # type: ignore[index]
    else:
        assert (
            "rank 1: error: Traceback" in output and "ZeroDivisionError: no such luck" in output
        ), output


def test_an_end_that_was_agreed_on_keeps_its_code(tokens: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "STOP").touch()
    arguments = [f"run={run}", *SMALL, *MAGE, f"data.tokens={tokens}"]
    codes, output = Ranks(stuck_at_the_end, arguments, 2, tmp_path / "log").wait()
    assert codes == [75, 75] and "stopped: at step 0" in output, output
