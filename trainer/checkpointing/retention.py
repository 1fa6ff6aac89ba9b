"""Which checkpoints are kept: the newest few, and for good those at multiples of
`permanent_every`."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.checkpointing.catalog import Catalog, LocalCatalog
from trainer.config.schema import CheckpointSection
from trainer.resilience.state import add_rewind
from trainer.run_folder import RunFolder


def is_permanent(step: int, section: CheckpointSection) -> bool:
    """Whether the checkpoint of that step is kept for good."""
    return section.permanent_every > 0 and step % section.permanent_every == 0


def expired(steps: Iterable[int], newest: int, section: CheckpointSection) -> list[int]:
    """Of these steps, those to remove once `newest` is safe. Later steps are of a past that was
    refused: they neither count nor are touched, and are replaced when the run comes to them."""
    passing = sorted(
        (s for s in steps if s <= newest and not is_permanent(s, section)), reverse=True
    )
    return passing[section.keep :]


def prune(catalog: Catalog, newest: int, section: CheckpointSection) -> list[int]:
    """Remove the checkpoints that have expired. Returns their steps. Raises StorageError."""
    gone = expired(catalog.steps(), newest, section)
    for step in gone:
        catalog.remove(step)
    return gone


def leave_out(folder: RunFolder, step: int, length: int) -> None:
    """Leave the data of `length` steps out from that step on, and remove the checkpoints that were
    trained on them, so that nobody evaluates them. Raises OSError and StorageError."""
    add_rewind(folder, step, length)
    catalog = LocalCatalog(folder)
    for later in catalog.steps():
        if later > step:
            catalog.remove(later)
