from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish


@pytest.fixture(scope="session")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing happens to: two micro batches a step, dropout, an EMA,
    ZeRO 1."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(run, *MAGE, f"data.tokens={tokens}", "ema_decay=0.9")
    return run
