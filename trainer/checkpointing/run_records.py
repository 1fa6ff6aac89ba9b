"""The records of a run that travel with its checkpoints, to the store and back to another
machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.storage import Store
from model.files import write_atomically
from trainer.checkpointing.catalog import RemoteCatalog
from trainer.checkpointing.format import Manifest
from trainer.run_folder import INCIDENTS, SUPERVISION, RunFolder, incident_names

RECORDS = ("metrics.jsonl", "rewinds.json", "config.resolved.yaml", "environment.json", SUPERVISION)


def send_records(folder: RunFolder, store: Store) -> None:
    """Replace the store's records by those of the run folder. Raises StorageError, and OSError
    where the incidents cannot be listed."""
    for name in (*RECORDS, *folder.incident_files()):
        try:
            content = (folder.path / name).read_bytes()
        except OSError:  # not there, or not readable, which `trainer.records` says by itself
            continue
        store.replace(name, content)


def fetch_records(
    remote: RemoteCatalog, folder: RunFolder, check: Callable[[Manifest, str], Any]
) -> None:
    """Bring the run's records to a machine that has none.

    check: called with the newest readable manifest and its location. What it raises ends the fetch,
    so that another run's records never come into the folder. Raises StorageError.
    """
    newest = remote.newest_manifest()
    if newest is None:
        return
    check(newest, remote.location(newest.step))
    store = remote.store
    names = {entry.name for name in (*RECORDS, INCIDENTS) for entry in store.list(name)}
    for name in RECORDS:
        if name in names and not (folder.path / name).exists():
            write_atomically(folder.path / name, store.read(name))
    for name in incident_names(names):
        path, before = folder.path / name, store.read(name)
        # This start may have had its first incident already: it comes after those of the store.
        met = path.read_bytes() if path.exists() else b""
        if not met.startswith(before):
            write_atomically(path, before + met)
