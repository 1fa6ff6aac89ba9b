"""Which checkpoints are kept: the newest few, and for good those at multiples of
`permanent_every`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.checkpointing.format import MANIFEST, candidates
from trainer.config.schema import CheckpointSection
from trainer.resilience.state import add_rewind
from trainer.run_folder import RunFolder


def is_permanent(step: int, section: CheckpointSection) -> bool:
    return section.permanent_every > 0 and step % section.permanent_every == 0


def expired(steps: Iterable[int], newest: int, section: CheckpointSection) -> list[int]:
    """Of these, the steps to remove once `newest` is safe. Later ones are of a past that was
    refused: they neither count nor are touched, and are replaced when the run comes to them."""
    passing = sorted(
        (s for s in steps if s <= newest and not is_permanent(s, section)), reverse=True
    )
    return passing[section.keep :]


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def prune(checkpoints: Path, newest: int, section: CheckpointSection) -> list[int]:
    """Remove what has expired. Returns the steps removed. Raises OSError."""
    paths = {step_of(path): path for path in candidates(checkpoints)}
    gone = expired(paths, newest, section)
    for step in gone:
        _remove(paths[step])
    return gone


def leave_out(folder: RunFolder, step: int, length: int) -> None:
    """Leave the data of `length` steps out from that step on, and remove the checkpoints that were
    trained on them: nobody shall evaluate them. Raises OSError."""
    add_rewind(folder, step, length)
    for path in candidates(folder.checkpoints):
        if step_of(path) > step:
            _remove(path)


def _remove(path: Path) -> None:
    """The manifest first: what is half removed is no checkpoint."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
