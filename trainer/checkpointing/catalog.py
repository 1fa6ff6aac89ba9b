"""The checkpoints of a run: one interface over its folder and over the store that it uploads to.

Everything that lists, reads, verifies or removes a checkpoint does it through a `Catalog`. A
checkpoint is known by its step. Two guarantees of the format are kept here: a checkpoint appears
whole, manifest last, and goes manifest first.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from data_pipeline.storage import (
    CHUNK,
    Entry,
    LocalStore,
    StorageError,
    Store,
    is_remote,
    open_store,
)
from model.errors import ADDPError, ConfigError
from model.files import sync, write_atomically
from model.networks import Network
from trainer.checkpointing.exported import exported_network
from trainer.checkpointing.format import (
    MANIFEST,
    PUBLISHED,
    Damaged,
    Manifest,
    NoValidCheckpoint,
    is_object_of_file,
    manifest_bytes,
    manifest_name,
    object_name,
    parse_manifest,
    read_bytes,
    read_manifest,
    step_of,
    step_of_manifest,
    verify_file,
)
from trainer.checkpointing.saved_state import Index, SavedState, read_index
from trainer.engine.state_keys import EMA, WEIGHTS
from trainer.formats import Weights
from trainer.resilience.state import read_rewinds, rewinds_before, rewinds_on
from trainer.run_folder import RunFolder, step_folder


class Catalog(ABC):
    """The checkpoints of one run in one place.

    name: of the place, for people. A method raises Damaged for a checkpoint that does not hold what
    its manifest states, and StorageError where the place does not answer.
    """

    name: str

    # What is there.

    @abstractmethod
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, valid or not, newest first."""

    @abstractmethod
    def location(self, step: int) -> str:
        """Where a checkpoint lies, for people."""

    @abstractmethod
    def rewinds(self) -> list[dict[str, int]]:
        """The data that the run leaves out, as `read_rewinds` has them. Raises DataError where they
        cannot be read."""

    @abstractmethod
    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """The bytes of those files of a checkpoint that are there, by name."""

    @abstractmethod
    def read(self, manifest: Manifest, file: str, start: int, length: int) -> bytes:
        """Bytes start .. start+length-1 of a file, which is not verified."""

    # How `restore` takes a checkpoint over: each file is fetched by one rank, rank 0 looks again at
    # those that are refused, and the whole is settled in the run folder.

    @abstractmethod
    def fetch(self, manifest: Manifest, file: str, staging: Path) -> None:
        """Verify a file, and bring it to the folder `staging` unless it lies in the run folder.
        Raises OSError as well."""

    @abstractmethod
    def look_again(self, manifest: Manifest, file: str, reason: str) -> str | None:
        """Rank 0 looks at a file in which another rank found `reason` to refuse it. Returns the
        reason that counts; None where the other rank's view of shared storage is old."""

    @abstractmethod
    def settle(self, manifest: Manifest, staging: Path, home: LocalCatalog) -> None:
        """Publish in the run folder what all `fetch` have brought to `staging`."""

    # What is taken away.

    @abstractmethod
    def remove(self, step: int) -> None:
        """Remove a checkpoint, manifest first: what is half removed is no checkpoint."""

    @abstractmethod
    def lock(self) -> None:
        """Keep the run from going on in this place while this process lives, where it can be kept.
        Raises ConfigError while it goes on."""

    # What the rest of this class is made of.

    @abstractmethod
    def _read_manifest(self, step: int) -> Manifest: ...

    @abstractmethod
    def _verified(self, step: int) -> AbstractContextManager[tuple[Path, Manifest]]:
        """A folder that holds all files of a checkpoint, verified, for as long as the context."""

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint states of itself; its files are not looked at."""
        manifest = self._read_manifest(step)
        if manifest.step != step:
            raise Damaged(f"{step_folder(step)} holds step {manifest.step}")
        return manifest

    def index(self, manifest: Manifest) -> Index:
        """Where the tensors of a checkpoint lie, by the headers of its files."""
        return read_index(manifest, partial(self.read, manifest))

    def verify(self, step: int) -> Manifest:
        """Read all files of a checkpoint, and compare them with its manifest, which is returned."""
        with self._verified(step) as (_, manifest):
            return manifest

    @contextmanager
    def saved_state(self, step: int) -> Iterator[SavedState]:
        """The tensors of a checkpoint, verified, for as long as the context."""
        with self._verified(step) as (folder, manifest):
            index = read_index(manifest, lambda file, *span: read_bytes(folder / file, *span))
            state = SavedState(folder, manifest, index)
            try:
                yield state
            finally:
                state.close()

    def trained(self, step: int, weights: Weights) -> tuple[Network, Manifest]:
        """The trained network as of a checkpoint, verified, and the manifest. Raises ADDPError
        where it does not have these weights."""
        with self.saved_state(step) as state:
            return exported_network(state, WEIGHTS if weights == "raw" else EMA), state.manifest

    def known(self, step: int) -> int:
        """Return the step, once it is certain that it has a checkpoint. Raises ConfigError where it
        has none."""
        steps = self.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"{self.name} has no checkpoint of step {step}; it has {there}")
        return step

    def newest_manifest(self) -> Manifest | None:
        """The newest manifest that can be read; None where there is none."""
        for step in self.steps():
            try:
                return self.manifest(step)
            except Damaged:
                continue
        return None

    def newest_valid(self, but: Collection[int] = ()) -> int:
        """The newest step whose checkpoint is verified, and was not trained on data that a rewind
        leaves out.

        but: steps to pass over. Raises NoValidCheckpoint where none holds, and ADDPError where
        there is none yet.
        """
        refused = []
        rewinds = self.rewinds()
        for step in (s for s in self.steps() if s not in but):
            try:
                if is_left(self.manifest(step), rewinds):
                    refused.append(f"step {step} was trained on data that a rewind leaves out")
                    continue
                self.verify(step)
                return step
            except (Damaged, StorageError) as error:
                refused.append(str(error))
        if not refused:
            raise ADDPError(f"{self.name} has no checkpoint yet")
        raise NoValidCheckpoint.of(self.name, refused)


class LocalCatalog(Catalog):
    """The checkpoints in a run folder. Only the run writes there, and who holds its lock."""

    def __init__(self, folder: RunFolder) -> None:
        self._run, self._checkpoints = folder, folder.checkpoints
        self.name = str(folder.path)

    def folder(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self._checkpoints / step_folder(step)

    def steps(self) -> list[int]:
        steps = (step_of(path.name) for path in self._checkpoints.glob("step-*"))
        return sorted((step for step in steps if step is not None), reverse=True)

    def location(self, step: int) -> str:
        return str(self.folder(step))

    def rewinds(self) -> list[dict[str, int]]:
        return read_rewinds(self._run)

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        paths = {file: self.folder(manifest.step) / file for file in manifest.files}
        return {file: path.stat().st_size for file, path in paths.items() if path.is_file()}

    def read(self, manifest: Manifest, file: str, start: int, length: int) -> bytes:
        return read_bytes(self.folder(manifest.step) / file, start, length)

    def fetch(self, manifest: Manifest, file: str, staging: Path) -> None:
        verify_file(self.folder(manifest.step) / file, manifest.files[file])

    def look_again(self, manifest: Manifest, file: str, reason: str) -> str | None:
        try:
            verify_file(self.folder(manifest.step) / file, manifest.files[file])
        except Damaged as error:
            return str(error)
        return None

    def settle(self, manifest: Manifest, staging: Path, home: LocalCatalog) -> None:
        pass

    def remove(self, step: int) -> None:
        path = self.folder(step)
        try:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be removed: {error.strerror or error}") from error

    def lock(self) -> None:
        self._run.lock(wait_seconds=0)

    def _read_manifest(self, step: int) -> Manifest:
        return read_manifest(self.folder(step))

    @contextmanager
    def _verified(self, step: int) -> Iterator[tuple[Path, Manifest]]:
        manifest, folder = self.manifest(step), self.folder(step)
        for file, stated in manifest.files.items():
            verify_file(folder / file, stated)
        yield folder, manifest

    # What only the run does:

    def prepare(self) -> None:
        """Make the folder, and remove what attempts that died have left unfinished. Raises
        OSError."""
        self._checkpoints.mkdir(exist_ok=True)
        for left in self._checkpoints.glob("*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def staging(self, step: int, attempt: str) -> Path:
        """The folder in which an attempt gathers the files of a checkpoint."""
        return self._checkpoints / f"{step_folder(step)}.{attempt}.tmp"

    def publish(self, manifest: Manifest, staging: Path) -> None:
        """Make a checkpoint of the files in `staging`: from the rename on it is one. Raises
        OSError, and StorageError for a full disk."""
        target = self.folder(manifest.step)
        write_atomically(staging / MANIFEST, manifest_bytes(manifest))
        sync(staging)
        if target.exists():  # it was refused, or is of a past that a rewind left
            aside = staging.with_name(f"{staging.stem}.old.tmp")
            target.rename(aside)
            staging.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            staging.rename(target)
        sync(target.parent)

    def note_saved(self, step: int) -> None:
        """Remember that the run has saved this step. Raises OSError."""
        write_atomically(self._checkpoints / PUBLISHED, f"{step}\n".encode())

    def check_never_saved(self) -> None:
        """Raises NoValidCheckpoint where the run has saved a step: its checkpoints are lost."""
        note = self._checkpoints / PUBLISHED
        if note.exists():
            raise NoValidCheckpoint(
                f"the run saved step {note.read_text().strip()}, but its checkpoints are gone from "
                f"{self._checkpoints}; bring them back, or remove {note} "
                "to start from the beginning"
            )


class RemoteCatalog(Catalog):
    """The checkpoints on the store that a run uploads to: a bucket, or a folder that stands for
    one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.url

    def steps(self) -> list[int]:
        steps = (step_of_manifest(entry.name) for entry in self._objects("checkpoints/"))
        return sorted((step for step in steps if step is not None), reverse=True)

    def _objects(self, prefix: str) -> list[Entry]:
        # The first upload makes a folder; a bucket has to be there.
        if isinstance(self.store, LocalStore) and not self.store.root.exists():
            return []
        return list(self.store.list(prefix))

    def location(self, step: int) -> str:
        return f"{self.name}/checkpoints/{step_folder(step)}"

    def rewinds(self) -> list[dict[str, int]]:
        return rewinds_on(self.store)

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        objects = self._objects(f"checkpoints/{step_folder(manifest.step)}/")
        sizes = {entry.name: entry.size for entry in objects}
        names = {file: _object(manifest, file) for file in manifest.files}
        return {file: sizes[name] for file, name in names.items() if name in sizes}

    def read(self, manifest: Manifest, file: str, start: int, length: int) -> bytes:
        return self.store.read(_object(manifest, file), start, length)

    def fetch(self, manifest: Manifest, file: str, staging: Path) -> None:
        stated, step = manifest.files[file], 8 * CHUNK
        staging.mkdir(parents=True, exist_ok=True)
        with (staging / file).open("wb") as target:
            for start in range(0, stated.bytes, step):
                target.write(self.read(manifest, file, start, min(step, stated.bytes - start)))
        verify_file(staging / file, stated)

    def look_again(self, manifest: Manifest, file: str, reason: str) -> str | None:
        return reason  # every rank reads the same objects

    def settle(self, manifest: Manifest, staging: Path, home: LocalCatalog) -> None:
        home.publish(manifest, staging)

    def remove(self, step: int) -> None:
        self.store.remove(manifest_name(step))
        for entry in self._objects(f"checkpoints/{step_folder(step)}/"):
            self.store.remove(entry.name)

    def lock(self) -> None:
        pass  # a lock on a store is held by renewing it, which a command does not do

    def _read_manifest(self, step: int) -> Manifest:
        text = self.store.read(manifest_name(step))
        return parse_manifest(text, f"{self.name}/{step_folder(step)}")

    @contextmanager
    def _verified(self, step: int) -> Iterator[tuple[Path, Manifest]]:
        manifest = self.manifest(step)
        with tempfile.TemporaryDirectory(prefix="addp-checkpoint-") as temporary:
            folder = Path(temporary) / step_folder(step)
            for file in manifest.files:
                self.fetch(manifest, file, folder)
            yield folder, manifest

    def add(self, source: LocalCatalog, step: int) -> None:
        """Copy a checkpoint from the run folder, manifest last. What an earlier try has brought is
        not sent again. Raises OSError where the checkpoint goes away meanwhile."""
        manifest, folder = source.manifest(step), source.folder(step)
        objects = self._objects(f"checkpoints/{step_folder(step)}/")
        sizes = {entry.name: entry.size for entry in objects}
        for file, stated in manifest.files.items():
            name = _object(manifest, file)
            if sizes.get(name) != stated.bytes:
                verify_file(folder / file, stated)
                if name in sizes:  # somebody else's: ours are whole
                    self.store.remove(name)
                self.store.create(name, folder / file)
        self.store.replace(manifest_name(step), (folder / MANIFEST).read_bytes())
        # The files of a checkpoint that stood here before a rewind go last.
        for name in sizes.keys() - {_object(manifest, file) for file in manifest.files}:
            if is_object_of_file(name):
                self.store.remove(name)


def _object(manifest: Manifest, file: str) -> str:
    return object_name(manifest.step, file, manifest.files[file])


def is_left(manifest: Manifest, rewinds: list[dict[str, int]]) -> bool:
    """Whether a checkpoint was trained on data that a rewind leaves out since."""
    return manifest.skipped != rewinds_before(rewinds, manifest.step)


def open_catalog(run: str) -> Catalog:
    """The checkpoints of a run, by its folder or by the store that it uploads to. Raises
    ConfigError where there is no such run."""
    if is_remote(run):
        return RemoteCatalog(open_store(run))
    folder = RunFolder(run)
    if not folder.checkpoints.is_dir():
        raise ConfigError(
            f"{run} is no run folder: it has no checkpoints/; give the folder that `run=` named"
        )
    if any(folder.checkpoints.glob("step-*/*.safetensors.*")):  # a folder that a run uploads to
        return RemoteCatalog(open_store(run))
    return LocalCatalog(folder)
