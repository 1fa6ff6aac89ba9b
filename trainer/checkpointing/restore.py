"""Go on from the newest checkpoint that is whole and of this run, here or on the store; on any
number of ranks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from data_pipeline.storage import StorageError, Store
from model.documents import first_problem
from model.errors import ConfigError
from model.files import sync, write_atomically
from trainer.checkpointing.format import (
    EMA,
    MANIFEST,
    PUBLISHED,
    Damaged,
    Manifest,
    NoValidCheckpoint,
    candidates,
    manifest_bytes,
    no_valid,
    read_manifest,
    verify_file,
)
from trainer.checkpointing.retention import step_of
from trainer.checkpointing.saved_state import (
    Index,
    SavedState,
    files_of,
    read_here,
    read_index,
    shares,
)
from trainer.checkpointing.upload import (
    download,
    fetch_records,
    object_name,
    remote_manifest,
    remote_steps,
)
from trainer.config.changes import Change, changes, forbidden
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.engine.engine import Engine
from trainer.resilience.state import TrainerState, read_rewinds, rewinds_before
from trainer.run_folder import RunFolder, step_folder


class Restored(NamedTuple):
    """manifest: None for a run without checkpoints. refused: why newer ones were not taken.
    rewinds: data that are left out. source: where the checkpoint lay. changed: keys of the
    configuration that differ from the checkpoint's."""

    manifest: Manifest | None
    refused: list[str]
    rewinds: list[dict[str, int]]
    source: str = ""
    changed: tuple[Change, ...] = ()

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


class Expected(NamedTuple):
    """The run that wants to go on. run_identity: what a checkpoint must share. run: its id.
    before: the configuration of the folder's last start, as JSON; {} where there was none."""

    run_identity: dict[str, Any]
    run: str
    config: RunConfig
    before: dict[str, Any]

    def check(self, manifest: Manifest, name: str) -> list[Change]:
        """What has changed since that checkpoint. Raises ConfigError where it is another run's, or
        where a key that changes the optimisation has changed and is not allowed."""
        known = (
            manifest.run_identity
            if manifest.run_identity.get("data")
            else {**manifest.run_identity, "data": self.run_identity.get("data")}
        )
        different = [
            f"{key}: checkpoint {known.get(key)!r}, now {value!r}"
            for key, value in self.run_identity.items()
            if _lasting(known.get(key)) != _lasting(value)
        ]
        if manifest.run and manifest.run != self.run:
            different.append(f"run: checkpoint {manifest.run}, now {self.run}")
        if different:
            raise ConfigError(
                f"{name} belongs to another run than the configured one ({'; '.join(different)}); "
                "use that configuration, or another run folder"
            )
        found = changes(manifest.config or self.before, self.config)
        known_before = {
            change.key for change in changes(self.before or manifest.config, self.config)
        }
        allowed = (
            *self.config.resume.allow,
            *(() if self.config.depends_on_micro else ("batch.micro",)),
        )
        bad = [
            c for c in forbidden(found, allowed) if c.key in known_before
        ]  # else: allowed before
        if bad:
            allow = ",".join(sorted({*self.config.resume.allow, *(c.key for c in bad)}))
            raise ConfigError(
                f"the configuration differs from that of {name} in what changes the optimisation: "
                f"{'; '.join(map(str, bad))}. To go on with it, add 'resume.allow=[{allow}]'; else "
                "use the configuration of before, or another run folder (and another "
                "checkpoint.upload)"
            )
        return found


def _lasting(value: Any) -> Any:
    """Of a fact what no run may change: not the dropout, which `resume.allow` is for, nor how
    positions started."""
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in ("dropout", "positions")}
    return value


def last_config(folder: RunFolder) -> dict[str, Any]:
    """The resolved configuration of the folder's last start, as JSON; {} where there is none that
    can be read."""
    try:
        found = yaml.safe_load((folder.path / "config.resolved.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


class _Candidate(NamedTuple):
    step: int
    remote: bool


def restore(
    folder: RunFolder,
    engine: Engine,
    collectives: Collectives,
    expected: Expected,
    store: Store | None,
    attempt: str,
    latest: int | None = None,
) -> Restored:
    """All ranks together. Rank 0 looks which checkpoints there are, and what lies in which of their
    files. Each file is verified by one rank, and opened by those that read of it; all agree on the
    checkpoint that is loaded.

    latest: newest step that will do. Raises NoValidCheckpoint where there are candidates but none
    is valid, ConfigError as `Expected.check`, StorageError where the store cannot be asked, or a
    rank does not see what rank 0 sees.
    """

    def records() -> list[dict[str, int]]:
        if store is not None and not candidates(folder.checkpoints):
            fetch_records(store, folder, expected.check)
        return read_rewinds(folder)

    refused: list[str] = []
    rewinds = collectives.broadcast_from_rank0(records)
    found = collectives.broadcast_from_rank0(lambda: _candidates(folder, store, latest))
    for candidate in found:
        try:
            manifest, changed = collectives.broadcast_from_rank0(
                partial(_usable, folder, store, candidate, expected, rewinds)
            )
            index = collectives.broadcast_from_rank0(
                partial(_index, folder, store, candidate, manifest)
            )
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        path = folder.checkpoints / step_folder(candidate.step)
        source = str(path)
        if candidate.remote:
            assert store is not None
            source = f"{store.url}/checkpoints/{path.name}"
            path = path.with_name(f"{path.name}.{attempt}.tmp")
        with_ema = EMA in manifest.state_keys
        needed = files_of(index, engine.wanted(with_ema))
        needs = collectives.collect(needed)
        mine = collectives.broadcast_from_rank0(partial(shares, manifest, needs))[collectives.rank]
        problems = collectives.all_gather(
            _problem(path, manifest, mine, store if candidate.remote else None)
        )
        reasons = collectives.broadcast_from_rank0(
            partial(_confirmed, path, manifest, candidate, problems)
        )
        if reasons:
            refused.append("; ".join(reasons))
            continue
        if candidate.remote:
            collectives.broadcast_from_rank0(partial(_move_in, path, manifest))
            path = folder.checkpoints / step_folder(candidate.step)  # as this host has it
        blind = collectives.until_all(partial(_are_seen, path, manifest, needed))
        if blind:
            raise StorageError(
                f"ranks {blind} do not see the files of {path} as rank 0 does; look whether their "
                "hosts have the storage mounted as its host has, and run it again"
            )
        state = SavedState(path, manifest, index)
        engine.fill(
            state.read,
            collectives.broadcast_from_rank0(state.buffers),
            manifest.scaler,
            manifest.applied,
            with_ema,
        )
        state.close()
        return Restored(manifest, refused, rewinds, source, tuple(changed))
    if refused:
        raise no_valid(str(folder.checkpoints), refused)
    if latest is None:
        collectives.broadcast_from_rank0(lambda: _was_never_saved(folder))
    return Restored(None, [], rewinds)


def has_checkpoints(folder: RunFolder, store: Store | None) -> bool:
    """Whether a start goes on from one, or fails. Raises StorageError where the store, which is
    asked only if there is none at hand, does not answer."""
    return bool(candidates(folder.checkpoints) or (store is not None and remote_steps(store)))


def foreseen(
    folder: RunFolder, store: Store | None, expected: Expected, rewinds: list[dict[str, int]]
) -> Restored:
    """What `restore` would start from, by manifests and sizes of files: none is read, fetched or
    changed. Raises as it does."""
    refused: list[str] = []
    for candidate in _candidates(folder, store, None):
        try:
            manifest, changed = _usable(folder, store, candidate, expected, rewinds)
            sizes = _sizes(folder, store, manifest, candidate)
            wrong = [
                name for name, stated in manifest.files.items() if sizes.get(name) != stated.bytes
            ]
            if wrong:
                raise Damaged(
                    f"{step_folder(candidate.step)}: {wrong[0]} is missing or not of the stated "
                    "size"
                )
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        return Restored(manifest, refused, rewinds, changed=tuple(changed))
    if refused:
        raise no_valid(str(folder.checkpoints), refused)
    _was_never_saved(folder)
    return Restored(None, [], rewinds)


def _sizes(
    folder: RunFolder, store: Store | None, manifest: Manifest, candidate: _Candidate
) -> dict[str, int]:
    """Of the files that are there."""
    if candidate.remote:
        assert store is not None
        there = {e.name: e.size for e in store.list(f"checkpoints/{step_folder(candidate.step)}/")}
        names = {
            name: object_name(candidate.step, name, stated)
            for name, stated in manifest.files.items()
        }
        return {name: there[target] for name, target in names.items() if target in there}
    path = folder.checkpoints / step_folder(candidate.step)
    return {
        name: (path / name).stat().st_size for name in manifest.files if (path / name).is_file()
    }


def _was_never_saved(folder: RunFolder) -> None:
    """Raises NoValidCheckpoint where the run had checkpoints once."""
    published = folder.checkpoints / PUBLISHED
    if published.exists():
        raise NoValidCheckpoint(
            f"the run saved step {published.read_text().strip()}, but its checkpoints are gone "
            f"from {folder.checkpoints}; bring them back, or remove {published} to start from the "
            "beginning"
        )


def _candidates(folder: RunFolder, store: Store | None, latest: int | None) -> list[_Candidate]:
    """Newest first, and of one step the copy at hand first. Raises StorageError where the store
    does not answer and there is none at hand: to start from zero then could repeat weeks."""
    found = [_Candidate(step_of(path), False) for path in candidates(folder.checkpoints)]
    if store is not None:
        try:
            found += [_Candidate(step, True) for step in remote_steps(store)]
        except StorageError as error:
            if not found:
                raise
            folder.incident({"event": "store not asked", "error": str(error)})
    return sorted(
        (c for c in found if latest is None or c.step <= latest), key=lambda c: (-c.step, c.remote)
    )


def _usable(
    folder: RunFolder,
    store: Store | None,
    candidate: _Candidate,
    expected: Expected,
    rewinds: list[dict[str, int]],
) -> tuple[Manifest, list[Change]]:
    """Rank 0. Raises Damaged, ConfigError or StorageError."""
    if candidate.remote:
        assert store is not None
        manifest = remote_manifest(store, candidate.step)
    else:
        manifest = read_manifest(folder.checkpoints / step_folder(candidate.step))
    name = step_folder(candidate.step)
    if manifest.step != candidate.step:
        raise Damaged(f"{name} holds step {manifest.step}")
    try:
        TrainerState.model_validate(manifest.trainer_state)
    except ValidationError as error:
        raise Damaged(
            f"{name}: {MANIFEST} states a progress that cannot be: {first_problem(error)}"
        ) from error
    changed = expected.check(manifest, name)
    if manifest.skipped != rewinds_before(rewinds, manifest.step):
        raise Damaged(f"{name} was trained on data that a rewind leaves out")
    return manifest, changed


def _index(
    folder: RunFolder, store: Store | None, candidate: _Candidate, manifest: Manifest
) -> Index:
    """Rank 0. Raises Damaged or StorageError."""
    if not candidate.remote:
        return read_index(manifest, read_here(folder.checkpoints / step_folder(candidate.step)))
    assert store is not None
    names = {
        name: object_name(manifest.step, name, stated) for name, stated in manifest.files.items()
    }
    return read_index(manifest, lambda name, start, length: store.read(names[name], start, length))


class _Problem(NamedTuple):
    file: str
    reason: str


def _problem(
    path: Path, manifest: Manifest, files: list[str], store: Store | None
) -> _Problem | None:
    """Verify these files, fetching them from `store` if there is one. Returns what is wrong with
    the first that is."""
    for name in files:
        try:
            if store is not None:
                download(store, manifest, name, path)
            else:
                verify_file(path, name, manifest.files[name])
        except (Damaged, StorageError) as error:
            return _Problem(name, str(error))
        except OSError as error:
            return _Problem(name, f"{path.name}: {name}: {error.strerror}")
    return None


def _confirmed(
    path: Path, manifest: Manifest, candidate: _Candidate, found: list[_Problem | None]
) -> list[str]:
    """Rank 0: of the ranks' problems, those of the files themselves. What another host sees of them
    may be old."""
    reasons = []
    for rank, problem in enumerate(found):
        if problem is None:
            continue
        if rank and not candidate.remote:
            try:
                verify_file(path, problem.file, manifest.files[problem.file])
            except Damaged as error:
                reasons.append(str(error))
        else:
            reasons.append(problem.reason)
    return reasons


def _are_seen(path: Path, manifest: Manifest, files: Iterable[str]) -> bool:
    try:
        return all((path / name).stat().st_size == manifest.files[name].bytes for name in files)
    except OSError:
        return False


def _move_in(path: Path, manifest: Manifest) -> None:
    target = path.with_name(step_folder(manifest.step))
    write_atomically(path / MANIFEST, manifest_bytes(manifest))
    if target.exists():
        shutil.rmtree(target)
    path.rename(target)
    sync(target.parent)
