"""Go on from the newest checkpoint that is whole and of this run, in the run folder or on the
store, on any number of ranks.

All ranks go through a restore together. For each candidate, newest first, they agree four times:

    rank 0   reads the manifest, and the headers of all files   -> tells all what lies where
    all      say which files they need                          -> each file is one rank's to verify
    all      verify their files, fetching those on the store    -> rank 0 decides what is damaged
    all      see the files as rank 0 does                       -> every rank reads what it needs

The first candidate of which all files hold is taken. A refused one goes on record with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from data_pipeline.storage import StorageError, Store
from model.documents import first_problem
from trainer.checkpointing.catalog import Catalog, LocalCatalog, RemoteCatalog, is_left
from trainer.checkpointing.expected import Expected
from trainer.checkpointing.format import MANIFEST, Damaged, Manifest, NoValidCheckpoint
from trainer.checkpointing.run_records import fetch_records
from trainer.checkpointing.saved_state import Index, SavedState, files_of
from trainer.config.changes import Change
from trainer.distributed.collectives import Collectives
from trainer.engine.engine import Engine
from trainer.engine.state_keys import EMA
from trainer.resilience.state import TrainerState
from trainer.run_folder import RunFolder, step_folder


class Restored(NamedTuple):
    """What a run starts from.

    manifest: None for a run without checkpoints. refused: why newer ones were not taken. rewinds:
    the data that are left out. source: where the checkpoint lay. changed: the keys of the
    configuration that differ from the checkpoint's.
    """

    manifest: Manifest | None
    refused: list[str]
    rewinds: list[dict[str, int]]
    source: str = ""
    changed: tuple[Change, ...] = ()

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


class _Candidate(NamedTuple):
    """A checkpoint that may be taken. number: of its catalog, as each rank has them: 0 for the run
    folder, 1 for the store."""

    step: int
    number: int


class _Problem(NamedTuple):
    file: str
    reason: str


def restore(
    folder: RunFolder,
    engine: Engine,
    collectives: Collectives,
    expected: Expected,
    *,
    store: Store | None,
    attempt: str,
    latest: int | None = None,
) -> Restored:
    """All ranks together: fill the engine from the newest checkpoint that will do.

    attempt: the name of this start. latest: the newest step that will do; None for any, and for
    none at all. Raises NoValidCheckpoint where there are candidates but none is valid, or one is
    needed and there is none; ConfigError as `Expected.check`; StorageError where the store cannot
    be asked, or a rank does not see what rank 0 sees.
    """
    catalogs, home = _catalogs(folder, store), LocalCatalog(folder)
    on_rank0 = collectives.broadcast_from_rank0

    def rewinds_of_run() -> list[dict[str, int]]:
        if store is not None and not home.steps():
            fetch_records(RemoteCatalog(store), folder, expected.check)
        return home.rewinds()

    refused: list[str] = []
    rewinds = on_rank0(rewinds_of_run)
    for step, number in on_rank0(partial(_candidates, folder, catalogs, latest)):
        catalog, staging = catalogs[number], home.staging(step, attempt)
        try:
            manifest, changed, index = on_rank0(partial(_usable, catalog, step, expected, rewinds))
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        with_ema = EMA in manifest.state_keys
        needed = files_of(index, engine.wanted(with_ema))
        if reasons := _bring(collectives, catalog, manifest, needed, staging):
            refused.append("; ".join(reasons))
            continue
        on_rank0(partial(catalog.settle, manifest, staging, home))
        _see_all(collectives, home.folder(step), manifest, needed)
        state = SavedState(home.folder(step), manifest, index)
        engine.fill(
            state.read, on_rank0(state.buffers), manifest.scaler, manifest.applied, with_ema
        )
        state.close()
        return Restored(manifest, refused, rewinds, catalog.location(step), tuple(changed))
    if refused:
        raise NoValidCheckpoint.of(str(folder.checkpoints), refused)
    if latest is not None:
        # Else the run would go on from step 0 with weights that are not those of step 0.
        raise NoValidCheckpoint(
            f"{folder.checkpoints} has no checkpoint of step {latest} or before, to which the run "
            "is to go back; bring one back from a copy, or start again in another run folder"
        )
    on_rank0(home.check_never_saved)
    return Restored(None, [], rewinds)


def foreseen(folder: RunFolder, store: Store | None, expected: Expected) -> Restored:
    """What `restore` would start from, by manifests and the sizes of files: no file is read,
    fetched or changed. Raises as it does."""
    catalogs, home = _catalogs(folder, store), LocalCatalog(folder)
    rewinds = (home if home.steps() else catalogs[-1]).rewinds()
    refused: list[str] = []
    for step, number in _candidates(folder, catalogs, None):
        catalog = catalogs[number]
        try:
            manifest, changed = _fitting(catalog, step, expected, rewinds)
            sizes = catalog.sizes(manifest)
            for file, stated in manifest.files.items():
                if sizes.get(file) != stated.bytes:
                    raise Damaged(
                        f"{step_folder(step)}: {file} is missing or not of the stated size"
                    )
        except (Damaged, StorageError) as error:
            refused.append(str(error))
            continue
        return Restored(manifest, refused, rewinds, catalog.location(step), tuple(changed))
    if refused:
        raise NoValidCheckpoint.of(str(folder.checkpoints), refused)
    home.check_never_saved()
    return Restored(None, [], rewinds)


def has_checkpoints(folder: RunFolder, store: Store | None, latest: int | None = None) -> bool:
    """Whether there is a checkpoint to go on from, valid or not. latest: the newest step that will
    do. The store is asked only where the folder has none. Raises StorageError where it does not
    answer."""
    return any(
        latest is None or step <= latest
        for catalog in _catalogs(folder, store)
        for step in catalog.steps()
    )


def shares(manifest: Manifest, needs: Sequence[set[str]]) -> list[list[str]]:
    """Which files each rank verifies: each file is one rank's, if possible one that reads of it,
    and ranks have about equal bytes.

    needs: the files that each rank reads.
    """
    mine: list[list[str]] = [[] for _ in needs]
    given = [0] * len(needs)
    for file, stated in manifest.files.items():
        able = [rank for rank, need in enumerate(needs) if file in need] or range(len(needs))
        rank = min(able, key=given.__getitem__)
        mine[rank].append(file)
        given[rank] += stated.bytes
    return mine


def _catalogs(folder: RunFolder, store: Store | None) -> list[Catalog]:
    """The places of checkpoints, the one at hand first."""
    home = LocalCatalog(folder)
    return [home] if store is None else [home, RemoteCatalog(store)]


def _candidates(
    folder: RunFolder, catalogs: Sequence[Catalog], latest: int | None
) -> list[_Candidate]:
    """Newest first, and of one step the copy at hand first. Raises StorageError where the store
    does not answer and there is none at hand: to start from zero then could repeat weeks."""
    candidates: list[_Candidate] = []
    for number, catalog in enumerate(catalogs):
        try:
            candidates += [_Candidate(step, number) for step in catalog.steps()]
        except StorageError as error:
            if not candidates:
                raise
            folder.incident({"event": "store not asked", "error": str(error)})
    return sorted(
        (c for c in candidates if latest is None or c.step <= latest),
        key=lambda c: (-c.step, c.number),
    )


def _usable(
    catalog: Catalog, step: int, expected: Expected, rewinds: list[dict[str, int]]
) -> tuple[Manifest, list[Change], Index]:
    """Rank 0: what all ranks need to know of a checkpoint. Raises Damaged, StorageError or
    ConfigError."""
    manifest, changed = _fitting(catalog, step, expected, rewinds)
    return manifest, changed, catalog.index(manifest)


def _fitting(
    catalog: Catalog, step: int, expected: Expected, rewinds: list[dict[str, int]]
) -> tuple[Manifest, list[Change]]:
    """The manifest of a checkpoint that the run may go on from, and what has changed since. Raises
    Damaged, StorageError or ConfigError."""
    name, manifest = step_folder(step), catalog.manifest(step)
    try:
        TrainerState.model_validate(manifest.trainer_state)
    except ValidationError as error:
        raise Damaged(
            f"{name}: {MANIFEST} states a progress that cannot be: {first_problem(error)}"
        ) from error
    changed = expected.check(manifest, name)
    if is_left(manifest, rewinds):
        raise Damaged(f"{name} was trained on data that a rewind leaves out")
    return manifest, changed


def _bring(
    collectives: Collectives, catalog: Catalog, manifest: Manifest, needed: set[str], staging: Path
) -> list[str]:
    """All ranks together: verify all files, and fetch to `staging` those that do not lie in the run
    folder. Returns why the checkpoint is refused; nothing where it holds.

    needed: the files that this rank reads.
    """
    needs = collectives.collect(needed)
    mine = collectives.broadcast_from_rank0(lambda: shares(manifest, needs))[collectives.rank]
    problems = collectives.all_gather(_first_problem(catalog, manifest, mine, staging))

    def reasons() -> list[str]:
        counted = []
        for rank, problem in enumerate(problems):
            if problem is None:
                continue
            reason = problem.reason if rank == 0 else catalog.look_again(manifest, *problem)
            if reason is not None:
                counted.append(reason)
        return counted

    return collectives.broadcast_from_rank0(reasons)


def _first_problem(
    catalog: Catalog, manifest: Manifest, files: Iterable[str], staging: Path
) -> _Problem | None:
    """Verify these files, fetching them where needed. Returns the first problem."""
    for file in files:
        try:
            catalog.fetch(manifest, file, staging)
        except (Damaged, StorageError) as error:
            return _Problem(file, str(error))
        except OSError as error:
            return _Problem(file, f"{step_folder(manifest.step)}: {file}: {error.strerror}")
    return None


def _see_all(
    collectives: Collectives, path: Path, manifest: Manifest, files: Iterable[str]
) -> None:
    """All ranks together: wait until each sees the files that it reads. Raises StorageError."""

    def sees() -> bool:
        try:
            return all((path / file).stat().st_size == manifest.files[file].bytes for file in files)
        except OSError:
            return False

    if blind := collectives.until_all(sees):
        raise StorageError(
            f"ranks {blind} do not see the files of {path} as rank 0 does; look whether their "
            "hosts have the storage mounted as its host has, and run it again"
        )
