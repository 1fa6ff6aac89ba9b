"""What `addp checkpoints` does, on a run folder or on the store that a run uploads to."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from data_pipeline.storage import StorageError, Store, is_remote, open_store
from model.errors import ADDPError, ConfigError
from model.networks import Network
from trainer.checkpointing import upload
from trainer.checkpointing.format import (
    EMA,
    WEIGHTS,
    Damaged,
    Manifest,
    candidates,
    no_valid,
    read_manifest,
    verify,
)
from trainer.checkpointing.retention import expired, prune, step_of
from trainer.checkpointing.saved_state import SavedState
from trainer.config.schema import CheckpointSection
from trainer.resilience.state import read_rewinds, rewinds_before, rewinds_on
from trainer.run_folder import RunFolder, Weights, step_folder


class Place(NamedTuple):
    """folder: where checkpoints lie at hand; or the store where they lie."""

    name: str
    folder: Path | None
    store: Store | None

    def steps(self) -> list[int]:
        """Newest first."""
        if self.store is not None:
            return upload.remote_steps(self.store)
        assert self.folder is not None
        return [step_of(path) for path in candidates(self.folder)]

    def manifest(self, step: int) -> Manifest:
        """Raises Damaged or StorageError."""
        if self.store is not None:
            return upload.remote_manifest(self.store, step)
        assert self.folder is not None
        return read_manifest(self.folder / step_folder(step))

    @contextmanager
    def verified(self, step: int) -> Iterator[tuple[Path, Manifest]]:
        """A checkpoint at hand, all of whose files hold. Raises Damaged or StorageError."""
        if self.folder is not None:
            path = self.folder / step_folder(step)
            yield path, verify(path)
            return
        assert self.store is not None
        manifest = self.manifest(step)
        with tempfile.TemporaryDirectory(prefix="addp-checkpoint-") as folder:
            for name in manifest.files:
                upload.download(self.store, manifest, name, Path(folder))
            yield Path(folder), manifest

    def rewinds(self) -> list[dict[str, int]]:
        """Raises StorageError, or DataError where they cannot be read."""
        if self.store is not None:
            return rewinds_on(self.store)
        assert self.folder is not None
        return read_rewinds(RunFolder(self.folder.parent))

    def known(self, step: int) -> int:
        """Raises ConfigError where there is no such checkpoint."""
        steps = self.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"{self.name} has no checkpoint of step {step}; it has {there}")
        return step

    def newest_valid(self, but: Collection[int] = ()) -> int:
        """Leaving some out, and those that were trained on data that a rewind leaves out. Raises
        ADDPError where there is none yet, NoValidCheckpoint where none holds."""
        refused = []
        rewinds = self.rewinds()
        for step in (s for s in self.steps() if s not in but):
            try:
                if self.manifest(step).skipped != rewinds_before(rewinds, step):
                    refused.append(f"step {step} was trained on data that a rewind leaves out")
                    continue
                with self.verified(step):
                    return step
            except (Damaged, StorageError) as error:
                refused.append(str(error))
        if not refused:
            raise ADDPError(f"{self.name} has no checkpoint yet")
        raise no_valid(self.name, refused)

    def network(self, step: int, weights: Weights) -> Network:
        """The trained network as of a checkpoint, verified. Raises Damaged, StorageError or
        ADDPError."""
        return self.trained(step, weights)[0]

    def trained(self, step: int, weights: Weights) -> tuple[Network, Manifest]:
        """As `network`, and the manifest that it was verified by."""
        with self.verified(step) as (path, manifest):
            return SavedState(path, manifest).network(
                WEIGHTS if weights == "raw" else EMA
            ), manifest


def open_run(run: str) -> Place:
    """Raises ConfigError where there is no such run."""
    if is_remote(run):
        return Place(run, None, open_store(run))
    folder = RunFolder(run)
    if not folder.checkpoints.is_dir():
        raise ConfigError(
            f"{run} is no run folder: it has no checkpoints/; give the folder that `run=` named"
        )
    if any(
        folder.checkpoints.glob("step-*/*.safetensors.*")
    ):  # what a run uploads to may be a folder as well
        return Place(run, None, open_store(run))
    return Place(run, folder.checkpoints, None)


def _row(step: int, state: str, manifest: Manifest | None, remark: str) -> dict[str, Any]:
    saved = manifest.saved if manifest else None
    return {
        "step": step,
        "state": state,
        "ranks": manifest.world_size if manifest else None,
        "zero_stage": manifest.zero_stage if manifest else None,
        "bytes": sum(f.bytes for f in manifest.files.values()) if manifest else None,
        "saved": datetime.fromtimestamp(saved).isoformat(" ", "seconds") if saved else None,
        "remark": remark,
    }


def listed(place: Place) -> list[dict[str, Any]]:
    """Of each checkpoint what its manifest says; its files are not read."""
    rows = []
    for step in place.steps():
        try:
            manifest = place.manifest(step)
            rows.append(_row(step, "unchecked", manifest, ", ".join(manifest.state_keys)))
        except (Damaged, StorageError) as error:
            rows.append(_row(step, "invalid", None, str(error)))
    return rows


def verified(place: Place, step: int | None) -> list[dict[str, Any]]:
    """All files of one checkpoint, or of all, against their sha256."""
    steps = place.steps() if step is None else [place.known(step)]
    rows = []
    console = Console(stderr=True)
    for number in track(steps, "verifying", console=console, disable=not console.is_terminal):
        try:
            with place.verified(number) as (_, manifest):
                rows.append(_row(number, "valid", manifest, ""))
        except (Damaged, StorageError) as error:
            rows.append(_row(number, "invalid", None, str(error)))
    return rows


def prunable(place: Place, keep: int, permanent_every: int) -> list[dict[str, Any]]:
    """What `pruned` would remove, as `listed`. Raises ADDPError where no checkpoint is valid."""
    gone = set(expired(place.steps(), place.newest_valid(), _section(keep, permanent_every)))
    return [row for row in listed(place) if row["step"] in gone]


def pruned(place: Place, keep: int, permanent_every: int) -> list[int]:
    """Remove all but the newest `keep`, counted from the newest valid one, and permanent ones;
    returns their steps.

    Raises ConfigError while the run goes on, which prunes by itself.
    """
    section = _section(keep, permanent_every)
    newest = place.newest_valid()
    if place.folder is not None:
        RunFolder(place.folder.parent).lock(patience=0)
        try:
            return prune(place.folder, newest, section)
        except OSError as error:
            raise StorageError(f"{place.folder}: {error.strerror}") from error
    assert place.store is not None
    gone = expired(place.steps(), newest, section)
    for step in gone:
        upload.remove(place.store, step)
    return gone


def _section(keep: int, permanent_every: int) -> CheckpointSection:
    return CheckpointSection(keep=keep, permanent_every=permanent_every)
