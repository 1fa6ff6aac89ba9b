"""Copies of checkpoints on object storage: `UPLOAD/checkpoints/step-N/`, manifest last, valid or
invisible as at home.

The objects of a checkpoint carry the beginning of their sha256 in their names, so that nothing is
ever overwritten with other bytes, and an upload that was cut short goes on.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.storage import (
    CHUNK,
    Entry,
    LocalStore,
    ObjectMissing,
    StorageError,
    Store,
    open_store,
)
from model.entry import leave_trace, unexpected
from model.errors import ADDPError, ConfigError
from model.files import write_atomically
from trainer import records
from trainer.checkpointing.format import (
    MANIFEST,
    Damaged,
    FileEntry,
    Manifest,
    parse_manifest,
    read_manifest,
    verify_file,
)
from trainer.checkpointing.retention import expired, is_permanent
from trainer.config.schema import CheckpointSection
from trainer.resilience.state import read_rewinds, rewinds_before
from trainer.run_folder import DONE, INCIDENTS, RunFolder, incident_names, step_folder

RECORDS = (
    "metrics.jsonl",
    "rewinds.json",
    "config.resolved.yaml",
    "environment.json",
)  # beside them, and incidents
_MANIFEST = re.compile(r"checkpoints/step-([0-9]{8})/" + re.escape(MANIFEST))
_FILE = re.compile(r"rank-\d+\.safetensors\.[0-9a-f]{12}")
_PAUSES = (1.0, 5.0, 15.0, 30.0)  # seconds between tries


def object_name(step: int, name: str, stated: FileEntry) -> str:
    return f"checkpoints/{step_folder(step)}/{name}.{stated.sha256[:12]}"


def manifest_name(step: int) -> str:
    return f"checkpoints/{step_folder(step)}/{MANIFEST}"


def remote_steps(store: Store) -> list[int]:
    """Steps with a manifest on the store, newest first; other names are not ours. Raises
    StorageError."""
    found = (_MANIFEST.fullmatch(entry.name) for entry in _listed(store, "checkpoints/"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _listed(store: Store, prefix: str) -> list[Entry]:
    """A folder is made by the first upload; a bucket is not, and has to be there."""
    if isinstance(store, LocalStore) and not store.root.exists():
        return []
    return list(store.list(prefix))


def remote_manifest(store: Store, step: int) -> Manifest:
    """Raises Damaged or StorageError."""
    return parse_manifest(store.read(manifest_name(step)), f"{store.url}/{step_folder(step)}")


def upload(path: Path, store: Store) -> None:
    """Raises StorageError, Damaged for a checkpoint that is not whole, OSError where it goes away
    meanwhile."""
    manifest = read_manifest(path)
    there = {entry.name: entry.size for entry in _listed(store, f"checkpoints/{path.name}/")}
    for name, stated in manifest.files.items():
        target = object_name(manifest.step, name, stated)
        if there.get(target) != stated.bytes:
            verify_file(path, name, stated)
            if target in there:  # nothing of ours: ours are whole
                store.remove(target)
            store.create(target, path / name)
    store.replace(manifest_name(manifest.step), (path / MANIFEST).read_bytes())
    ours = {object_name(manifest.step, name, stated) for name, stated in manifest.files.items()}
    for name in there.keys() - ours:
        if _FILE.fullmatch(
            name.rpartition("/")[2]
        ):  # of a checkpoint that stood here before a rewind
            store.remove(name)


def remove_left(store: Store, rewinds: list[dict[str, int]]) -> list[int]:
    """Remove the checkpoints that were trained on data that a rewind leaves out, which restoring
    refuses: nobody shall evaluate them. Returns their steps. Raises StorageError."""
    gone = []
    for step in remote_steps(store):
        if step <= min(entry["step"] for entry in rewinds):
            break
        try:
            skipped = remote_manifest(store, step).skipped
        except (Damaged, ObjectMissing):
            continue
        if skipped != rewinds_before(rewinds, step):
            remove(store, step)
            gone.append(step)
    return gone


def remove(store: Store, step: int) -> None:
    """Manifest first. Raises StorageError."""
    store.remove(manifest_name(step))
    for entry in _listed(store, f"checkpoints/{step_folder(step)}/"):
        store.remove(entry.name)


def download(store: Store, manifest: Manifest, name: str, folder: Path) -> None:
    """One file of a checkpoint, verified. Raises Damaged, StorageError or OSError."""
    stated = manifest.files[name]
    target = object_name(manifest.step, name, stated)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        for start in range(0, stated.bytes, 8 * CHUNK):
            file.write(store.read(target, start, min(8 * CHUNK, stated.bytes - start)))
    verify_file(folder, name, stated)


def fetch_records(store: Store, folder: RunFolder, check: Callable[[Manifest, str], Any]) -> None:
    """Bring the run's records to a machine that has none, where `check` passes its newest
    checkpoint whose manifest can be read: another run's records shall not come into the folder.
    Raises StorageError, and what `check` raises."""
    for step in remote_steps(store):
        try:
            check(remote_manifest(store, step), f"{store.url}/{step_folder(step)}")
            break
        except Damaged:
            continue
    else:
        return
    there = {entry.name for name in (*RECORDS, INCIDENTS) for entry in store.list(name)}
    for name in RECORDS:
        if name in there and not (folder.path / name).exists():
            write_atomically(folder.path / name, store.read(name))
    for name in incident_names(there):
        path, before = folder.path / name, store.read(name)
        met = (
            path.read_bytes() if path.exists() else b""
        )  # by this start, which may have had its first already
        if not met.startswith(before):
            write_atomically(path, before + met)


def _newest(store: Store) -> tuple[int, float] | None:
    """Step of the newest checkpoint on the store, and when it was saved. None where the store has
    none, or where that cannot be told: this is for people, and uploads, which meet the same, report
    it."""
    try:
        for step in remote_steps(store):
            try:
                return step, remote_manifest(store, step).saved
            except Damaged:
                continue
    except Exception:  # noqa: BLE001 - uploads shall begin whatever lies there
        pass
    return None


class Uploader:
    """A thread of rank 0 that brings the newest checkpoint to the store, and tries again for as
    long as it takes, whatever the error. One that is overtaken by a newer one is left out, unless
    it is permanent.

    confirm: raises where the store is not this run's: ConfigError for good, StorageError where it
    cannot be told now.
    """

    def __init__(
        self, folder: RunFolder, section: CheckpointSection, confirm: Callable[[], None]
    ) -> None:
        assert section.upload is not None
        self._store, self._folder, self._section = open_store(section.upload), folder, section
        self._confirm = confirm
        self.lost: ADDPError | None = None  # why nothing is uploaded any more
        self._wanted: list[int] = []
        self._withdrawing = False  # whether the store may still call the run complete
        self._good: tuple[int, float] | None = (
            None  # the newest copy that is known of: its step, and when
        )
        self._swept: list[
            dict[str, int]
        ] = []  # rewinds that the store holds no checkpoint of before
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="upload")
        self._thread.start()

    def offer(self, step: int) -> None:
        with self._changed:
            if self.lost is None:
                self._wanted = [s for s in self._wanted if is_permanent(s, self._section)] + [step]
            self._changed.notify_all()

    def withdraw_end(self) -> None:
        """The run has work left: the store shall not call it complete, at the latest when a
        checkpoint comes there."""
        with self._changed:
            self._withdrawing = True
            self._changed.notify_all()

    def _run(self) -> None:
        failures, told = 0, set[bool]()  # told: that a checkpoint waits, and that a withdrawal does
        self._good = _newest(self._store)
        while True:
            with self._changed:
                while not (self._wanted or self._withdrawing or self._closing):
                    self._changed.wait()
                if not (self._wanted or self._withdrawing):
                    return
                step = self._wanted[0] if self._wanted else None
            try:
                self._confirm()
                if self._withdrawing:
                    self._store.remove(DONE)
                    with self._changed:
                        self._withdrawing = False
                        self._changed.notify_all()
                if step is not None:
                    self._bring(step)
            except ConfigError as error:
                self._folder.incident({"event": "uploads ended", "step": step, "error": str(error)})
                with self._changed:
                    self.lost, self._wanted = error, []
                    self._changed.notify_all()
                return
            except Exception as error:  # noqa: BLE001 - also what nobody foresaw may pass, and no copy is given up
                reason = (
                    self._reason(error) if failures == 0 or (step is not None) not in told else ""
                )
                if failures == 0:
                    self._folder.incident({"event": "upload", "step": step, "error": reason})
                if (step is not None) not in told:
                    told.add(step is not None)
                    self._say(self._late(step, reason))
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures += 1
                with self._changed:
                    self._changed.wait(pause)
                continue
            if failures:
                self._folder.incident(
                    {"event": "upload recovered", "step": step, "tries": failures + 1}
                )
                brought = (
                    f": the checkpoint of step {step} is on {self._store.url}"
                    if step is not None
                    else ""
                )
                self._say(f"the store answers again{brought}")
            failures = 0
            told.clear()
            with self._changed:
                self._wanted = [s for s in self._wanted if s != step]
                self._changed.notify_all()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ADDPError | OSError):
            return str(error)
        return unexpected(error, leave_trace(error, self._folder.trace(0)))

    def _bring(self, step: int) -> None:
        path = self._folder.checkpoints / step_folder(step)
        try:
            upload(path, self._store)
        except Damaged as error:
            self._folder.incident({"event": "not uploaded", "step": step, "error": str(error)})
            self._say(f"the checkpoint of step {step} was not copied: {error}; {self._last_good()}")
            return
        except (OSError, ObjectMissing) as error:
            if path.exists():
                raise StorageError(f"{path}: {error}") from error
            return  # retention was faster: a newer one follows
        self._good = step, time.time()
        for name in (*RECORDS, *self._folder.incident_files()):
            try:
                content = (self._folder.path / name).read_bytes()
            except (
                OSError
            ):  # not there, or not readable, which `records` says: the checkpoint is what matters
                continue
            self._store.replace(name, content)
        rewinds = read_rewinds(self._folder)
        if (
            rewinds and rewinds != self._swept
        ):  # once this checkpoint, and that there was a rewind, are there
            if gone := remove_left(self._store, rewinds):
                self._folder.incident(
                    {"event": "copies removed", "steps": gone, "reason": "left by a rewind"}
                )
            self._swept = rewinds
        for old in expired(remote_steps(self._store), step, self._section):
            remove(self._store, old)

    def announce_end(self) -> None:
        """For who follows the run on its store, once all is uploaded."""
        with self._changed:
            self._withdrawing = False
        try:
            self._confirm()
            self._store.replace(DONE, (self._folder.path / DONE).read_bytes())
        except (ADDPError, OSError) as error:
            self._folder.incident({"event": "upload", "error": str(error)})
            self._say(f"the end of the run is not announced on {self._store.url}: {error}")

    def _say(self, line: str) -> None:
        records.say(f"{self._folder.path.name}: {line}")

    def _late(self, step: int | None, reason: str) -> str:
        if step is None:
            return (
                f"{self._store.url} may still call the run complete: {reason}. It is tried again "
                "meanwhile"
            )
        return (
            f"the checkpoint of step {step} is not on {self._store.url} yet: {reason}. It is tried "
            f"again while training goes on; {self._last_good()}"
        )

    def _last_good(self) -> str:
        if self._good is None:
            return "no copy was made since this start"
        return f"the last good copy is of step {self._good[0]}, of {records.ago(self._good[1])}"

    @property
    def busy(self) -> bool:
        return bool(self._wanted)

    def close(self, patience: float, waiting: Callable[[], None]) -> list[int]:
        """Wait until all is uploaded, at most `patience` seconds. Returns the steps of which the
        copies are missing.

        waiting: called once a second meanwhile.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._wanted or self._withdrawing) and (left := deadline - time.monotonic()) > 0:
                if not self._thread.is_alive():
                    break
                self._changed.wait(min(left, 1.0))
                waiting()
            return list(self._wanted)
