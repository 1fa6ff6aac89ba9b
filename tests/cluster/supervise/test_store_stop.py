"""A STOP on the store of a run stops its supervisors as well: they do not start it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.supervise import history
from data_pipeline.storage import LocalStore
from tests.cluster.supervise.supervising import job
from tests.trainer.launching import MAGE, SMALL
from trainer.run_folder import STOP


@pytest.mark.long
def test_a_stop_on_the_store_is_final(tokens: Path, tmp_path: Path) -> None:
    store, run = LocalStore(tmp_path / "store"), tmp_path / "run"
    words = [*SMALL, *MAGE, f"data.tokens={tokens}", "schedule.total=100000"]
    words += [f"checkpoint.upload={tmp_path / 'store'}", "checkpoint.every=1000"]
    with job(run, "--ranks", "2", words=words, toy=False) as one:
        one.start(0)
        one.until(lambda: one.folder.metrics.exists())
        assert store.create(STOP, b"asked by somebody who sees the store alone")
        assert one.wait() == 75
        (verdict,) = one.of(history.Verdict)
        assert verdict.verdict == "stopped" and verdict.by_user
        assert len(one.of(history.Start)) == 1
        ended = one.folder.read_exit()
        assert ended is not None and ended["stop"] == "file" and ended["code"] == 75
        assert not (tmp_path / "store" / STOP).exists()
