"""What `addp checkpoints` does, on a run folder or on the store that a run uploads to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import track

from data_pipeline.storage import StorageError
from trainer.checkpointing.catalog import Catalog
from trainer.checkpointing.format import Damaged, Manifest
from trainer.checkpointing.retention import expired, prune
from trainer.config.schema import CheckpointSection


def listed(catalog: Catalog) -> list[dict[str, Any]]:
    """What the manifest of each checkpoint says; its files are not read."""
    rows = []
    for step in catalog.steps():
        try:
            manifest = catalog.manifest(step)
            rows.append(_row(step, "unchecked", manifest, ", ".join(manifest.state_keys)))
        except (Damaged, StorageError) as error:
            rows.append(_row(step, "invalid", None, str(error)))
    return rows


def verified(catalog: Catalog, step: int | None) -> list[dict[str, Any]]:
    """As `listed`, once all files of one checkpoint, or of all of them, are compared with their
    sha256. Raises ConfigError where there is no checkpoint of that step."""
    steps = catalog.steps() if step is None else [catalog.known(step)]
    rows = []
    console = Console(stderr=True)
    for number in track(steps, "verifying", console=console, disable=not console.is_terminal):
        try:
            rows.append(_row(number, "valid", catalog.verify(number), ""))
        except (Damaged, StorageError) as error:
            rows.append(_row(number, "invalid", None, str(error)))
    return rows


def prunable(catalog: Catalog, keep: int, permanent_every: int) -> list[dict[str, Any]]:
    """What `pruned` would remove, as `listed`. Raises ADDPError where no checkpoint is valid."""
    section = CheckpointSection(keep=keep, permanent_every=permanent_every)
    gone = set(expired(catalog.steps(), catalog.newest_valid(), section))
    return [row for row in listed(catalog) if row["step"] in gone]


def pruned(catalog: Catalog, keep: int, permanent_every: int) -> list[int]:
    """Remove all checkpoints but permanent ones and the newest `keep`, counted from the newest
    valid one. Returns their steps.

    Raises ConfigError while the run goes on in that folder, which prunes by itself; ADDPError where
    no checkpoint is valid.
    """
    newest = catalog.newest_valid()
    catalog.lock()
    return prune(catalog, newest, CheckpointSection(keep=keep, permanent_every=permanent_every))


def _row(step: int, state: str, manifest: Manifest | None, remark: str) -> dict[str, Any]:
    saved = manifest.saved if manifest else None
    return {
        "step": step,
        "state": state,
        "ranks": manifest.world_size if manifest else None,
        "zero_stage": manifest.zero_stage if manifest else None,
        "bytes": manifest.size if manifest else None,
        "saved": datetime.fromtimestamp(saved).isoformat(" ", "seconds") if saved else None,
        "remark": remark,
    }
