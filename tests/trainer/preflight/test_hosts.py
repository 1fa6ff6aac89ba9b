"""What `addp train --check` finds before a run is started on machines. Several real hosts: by hand,
see the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.launching import MAGE, SMALL
from trainer.preflight import hosts as check_hosts


def test_a_table_and_what_is_wrong(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "run"
    good = [*MAGE, *SMALL, f"run={run}", f"data.tokens={tokens}"]
    assert check_hosts.main(good) == 0
    said = capsys.readouterr().out
    assert (
        "1 ranks meet" in said
        and "data.tokens" in said
        and "shared" in said
        and not run.parent.exists()
    )
    missing = tmp_path / "none.safetensors"
    assert check_hosts.main([*good, f"tokenizer.weights={missing}", "run=/proc/run"]) == 78
    said = capsys.readouterr().out
    assert (
        "NOT SEEN" in said
        and f": tokenizer.weights: [Errno 2] No such file or directory: '{missing}'" in said
    )
    assert ": the run folder: " in said and "NOT SHARED" in said
    assert check_hosts.main([*good, "batch.mikro=2"]) == 78
    assert "the nearest known one is batch.micro" in capsys.readouterr().out


def test_hosts_that_differ() -> None:
    first = {
        "host": "a",
        "python": "3.11.7",
        "code": "1",
        "configuration": "c",
        "torch": "2",
        "deepspeed": "0",
        "numpy": "2",
    }
    second = {**first, "host": "b", "python": "3.12.1", "code": "2"}
    assert check_hosts.wrong([(first, []), (second, ["sees nothing"])]) == [
        "b: sees nothing",
        "python differs: 3.11.7 on a, 3.12.1 on b",
        "code differs: 1 on a, 2 on b",
    ]
