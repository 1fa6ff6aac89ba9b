"""Go on from the newest checkpoint that is whole and of this run, here or on the store; on any number of ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.storage import StorageError, Store, sync, write_atomically
from model.errors import ConfigError
from trainer.checkpoint import (
    AVERAGE,
    MANIFEST,
    PUBLISHED,
    Damaged,
    Manifest,
    NoValidCheckpoint,
    SavedState,
    candidates,
    no_valid,
    read_manifest,
    verify_file,
)
from trainer.control import Control
from trainer.engine import Engine
from trainer.progress import rewinds_before
from trainer.retention import step_of
from trainer.run_folder import RunFolder, step_folder
from trainer.upload import download, object_name, remote_manifest, remote_steps


class Restored(NamedTuple):
    """manifest: None for a run without checkpoints. refused: why newer ones were not taken."""

    manifest: Manifest | None
    refused: list[str]

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


class _Candidate(NamedTuple):
    step: int
    remote: bool


def restore(
    folder: RunFolder, engine: Engine, control: Control, facts: dict[str, Any], rewinds: list[dict[str, int]],
    store: Store | None, session: str, latest: int | None = None,
) -> Restored:  # fmt: skip
    """All ranks together. Every rank verifies its share of the files, and all agree on the one that is loaded.

    latest: newest step that will do. Raises NoValidCheckpoint where there are candidates but none is valid, ConfigError
    for a checkpoint of another run, StorageError where the store cannot be asked.
    """
    refused: list[str] = []
    found = control.on_first(lambda: _candidates(folder, store, latest))
    for candidate in found:
        try:
            manifest = control.on_first(lambda c=candidate: _usable(folder, store, c, facts, rewinds))  # type: ignore[misc]
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        path = folder.checkpoints / step_folder(candidate.step)
        if candidate.remote:
            path = path.with_name(f"{path.name}.{session}.tmp")
        problems = [p for p in control.gather(_check_share(path, manifest, control, store, candidate)) if p]
        if problems:
            refused.append("; ".join(problems))
            continue
        if candidate.remote:
            path = control.on_first(lambda p=path, m=manifest: _move_in(p, m))  # type: ignore[misc]
        state = SavedState(path, manifest)
        engine.fill(state.read, state.buffers(), manifest.scaler, manifest.applied, AVERAGE in manifest.kinds)
        return Restored(manifest, refused)
    if refused:
        raise no_valid(str(folder.checkpoints), refused)
    if latest is None:
        control.on_first(lambda: _was_never_saved(folder))
    return Restored(None, [])


def foreseen(folder: RunFolder, store: Store | None, facts: dict[str, Any], rewinds: list[dict[str, int]]) -> Restored:
    """What `restore` would start from, by manifests and sizes of files: none is read, fetched or changed. Raises as it
    does."""
    refused: list[str] = []
    for candidate in _candidates(folder, store, None):
        try:
            manifest = _usable(folder, store, candidate, facts, rewinds)
            sizes = _sizes(folder, store, manifest, candidate)
            wrong = [name for name, stated in manifest.files.items() if sizes.get(name) != stated.bytes]
            if wrong:
                raise Damaged(f"{step_folder(candidate.step)}: {wrong[0]} is missing or not of the stated size")
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        return Restored(manifest, refused)
    if refused:
        raise no_valid(str(folder.checkpoints), refused)
    _was_never_saved(folder)
    return Restored(None, [])


def _sizes(folder: RunFolder, store: Store | None, manifest: Manifest, candidate: _Candidate) -> dict[str, int]:
    """Of the files that are there."""
    if candidate.remote:
        assert store is not None
        there = {e.name: e.size for e in store.list(f"checkpoints/{step_folder(candidate.step)}/")}
        names = {name: object_name(candidate.step, name, stated) for name, stated in manifest.files.items()}
        return {name: there[target] for name, target in names.items() if target in there}
    path = folder.checkpoints / step_folder(candidate.step)
    return {name: (path / name).stat().st_size for name in manifest.files if (path / name).is_file()}


def _was_never_saved(folder: RunFolder) -> None:
    """Raises NoValidCheckpoint where the run had checkpoints once."""
    published = folder.checkpoints / PUBLISHED
    if published.exists():
        raise NoValidCheckpoint(
            f"the run saved step {published.read_text().strip()}, but its checkpoints are gone from "
            f"{folder.checkpoints}; bring them back, or remove {published} to start from the beginning"
        )


def _candidates(folder: RunFolder, store: Store | None, latest: int | None) -> list[_Candidate]:
    """Newest first, and of one step the copy at hand first. Raises StorageError where the store does not answer and
    there is none at hand: to start from zero then could repeat weeks."""
    found = [_Candidate(step_of(path), False) for path in candidates(folder.checkpoints)]
    if store is not None:
        try:
            found += [_Candidate(step, True) for step in remote_steps(store)]
        except StorageError as error:
            if not found:
                raise
            folder.incident({"event": "store not asked", "error": str(error)})
    return sorted((c for c in found if latest is None or c.step <= latest), key=lambda c: (-c.step, c.remote))


def _usable(
    folder: RunFolder, store: Store | None, candidate: _Candidate, facts: dict[str, Any], rewinds: list[dict[str, int]]
) -> Manifest:
    """Rank 0. Raises Damaged, ConfigError or StorageError."""
    if candidate.remote:
        assert store is not None
        manifest = remote_manifest(store, candidate.step)
    else:
        manifest = read_manifest(folder.checkpoints / step_folder(candidate.step))
    name = step_folder(candidate.step)
    if manifest.step != candidate.step:
        raise Damaged(f"{name} holds step {manifest.step}")
    different = [
        f"{key}: checkpoint {manifest.facts.get(key)!r}, now {value!r}"
        for key, value in facts.items()
        if manifest.facts.get(key) != value
    ]
    if different:
        raise ConfigError(
            f"{name} belongs to another run than the configured one ({'; '.join(different)}); "
            "use that configuration, or another run folder"
        )
    if manifest.skipped != rewinds_before(rewinds, manifest.step):
        raise Damaged(f"{name} was trained on data that a rewind leaves out")
    return manifest


def _check_share(
    path: Path, manifest: Manifest, control: Control, store: Store | None, candidate: _Candidate
) -> str | None:
    """Verify (and fetch) every file whose turn is this rank's. Returns what is wrong."""
    for index, (name, stated) in enumerate(manifest.files.items()):
        if index % control.world_size == control.rank:
            try:
                if candidate.remote:
                    assert store is not None
                    download(store, manifest, name, path)
                else:
                    verify_file(path, name, stated)
            except (Damaged, StorageError) as error:
                return str(error)
            except OSError as error:
                return f"{path.name}: {name}: {error.strerror}"
    return None


def _move_in(path: Path, manifest: Manifest) -> Path:
    target = path.with_name(step_folder(manifest.step))
    write_atomically(path / MANIFEST, manifest.model_dump_json(indent=1).encode())
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)
    sync(target.parent)
    return target
