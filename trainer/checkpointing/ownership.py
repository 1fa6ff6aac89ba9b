"""Which run a folder and a store hold, and that one process at a time writes to a store.

`run.json`, in the folder and on the store, names the run for good. `owner/run.K` on the store is
the lock of the run's rank 0: a claim as evaluators use it, renewed while the run lives, and taken
over by proof only: its process has ended on this machine, or its renewals stay away for a lease's
time while we watch. No clocks are compared.
"""

from __future__ import annotations

import json
import platform
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from data_pipeline.storage import LocalStore, ObjectMissing, StorageError, Store
from model.errors import ConfigError
from trainer.checkpointing.format import Damaged, candidates, read_manifest
from trainer.checkpointing.upload import remote_manifest, remote_steps
from trainer.distributed.collectives import Collectives
from trainer.evaluation.claims import Claim, Claims, is_here
from trainer.resilience.heartbeat import Heartbeat
from trainer.run_folder import RUN, RunFolder

FOLDER, NAME = "owner", "run"
_PATIENCE = (
    5.0  # seconds for which a process of this machine that was just killed may still be ending
)
_PARTING = 5.0  # seconds that a store may take to release the lock: fewer than a rank has to leave


class OtherOwner(ConfigError):
    """The store belongs to another run, or to a start of this run that lives elsewhere."""


def run_of(folder: RunFolder) -> str | None:
    """The id of the run in a folder, by its run.json or its newest checkpoint; None where neither
    has one."""
    if found := folder.read_identity():
        return str(found["run"])
    for path in candidates(folder.checkpoints):
        try:
            return read_manifest(path).run or None
        except Damaged:
            continue
    return None


def run_on(store: Store) -> dict[str, Any] | None:
    """Identity of the run that uploads to a store; None where it has none, or one of an earlier
    version."""
    try:
        found: dict[str, Any] = json.loads(store.read(RUN))
        return {**found, "run": str(found["run"])}
    except ObjectMissing:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise OtherOwner(
            f"{store.url}/{RUN} does not name a run; remove it if the store is this run's"
        ) from error
    for step in remote_steps(store):
        try:
            run = remote_manifest(store, step).run
        except Damaged:
            continue
        return {"run": run} if run else None
    return None  # nothing yet, or of an earlier version: to be adopted


def agreed_run(folder: RunFolder, store: Store, run: str | None) -> str | None:
    """The id of the run that a folder and a store hold together; None where neither has one yet.

    run: the folder's. An empty folder takes the store's. Raises OtherOwner where they hold two
    runs; StorageError.
    """
    there = run_on(store)
    if there is None or run == there["run"]:
        return run
    if run is not None or candidates(folder.checkpoints):
        mine = f"run {run}" if run else "a run of an earlier version, without an id"
        raise OtherOwner(
            f"{store.url} holds run {there['run']}{_made(there)}, and {folder.path} is {mine}; "
            "give this run a checkpoint.upload of its own, or go on with that one in an empty run "
            "folder"
        )
    return str(there["run"])


def holder_of(store: Store) -> str | None:
    """Who holds the lock of a store, for people. Raises StorageError."""
    holder = Claims(store, 0.0, FOLDER).holder(NAME)
    return _described(holder) if holder else None


def new_identity(run: str | None = None) -> dict[str, Any]:
    return {"run": run or uuid.uuid4().hex[:12], "host": platform.node(), "made": time.time()}


class Ownership:
    """Of rank 0, which enters before it restores; its uploading thread confirms before each
    upload."""

    def __init__(self, folder: RunFolder, store: Store, lease: float, start: str) -> None:
        self._folder, self._store = folder, store
        self.run = run_of(folder)
        self._claims = Claims(store, lease, FOLDER)
        self._claims.owner |= {
            "run": self.run,
            "start": start,
            "folder": str(folder.path),
            "since": time.time(),
        }
        self._claim: Claim | None = None
        self._agreed = False  # whether the store is known to hold no other run
        self._marked = False  # whether the store names this run
        self._watched: dict[
            str, tuple[int, float]
        ] = {}  # holder -> its beat when first seen, and when that was

    def enter(self) -> bool:
        """One try to hold the store. False while another holder is being watched for a sign of
        life.

        Raises OtherOwner where it lives, or the store is another run's; StorageError.
        """
        if self._claim is None:
            if isinstance(self._store, LocalStore):
                try:
                    self._store.root.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise StorageError(
                        f"{self._store.url} cannot be made: {error.strerror or error}"
                    ) from error
            self._claim = self._claims.take(NAME)
            if self._claim is None:
                self._watch()
                return False
        if not self._agreed:
            try:
                self._compare()
            except OtherOwner:
                self._claim.release()
                self._claim = None
                raise
            self._claims.owner["run"] = self.run  # a new one is known only now
            self._claim.renew()
            self._agreed = True
        return True

    def _watch(self) -> None:
        holder = self._claims.holder(NAME)
        if holder is None:
            return
        beat, since = self._watched.setdefault(
            str(holder.get("holder")), (holder["beat"], time.monotonic())
        )
        if holder["beat"] != beat or (is_here(holder) and time.monotonic() - since > _PATIENCE):
            raise OtherOwner(
                f"{self._store.url} is in use by {_described(holder)}; let that run end, or give "
                "this one a checkpoint.upload of its own"
            )

    @property
    def watched(self) -> str:
        """Whose sign of life is awaited, for people."""
        holder = self._claims.holder(NAME)
        return _described(holder) if holder else "another process"

    def _compare(self) -> None:
        """Take the store's run for an empty folder's. Raises OtherOwner, StorageError."""
        self.run = agreed_run(self._folder, self._store, self.run) or new_identity()["run"]

    def confirm(self) -> None:
        """Before anything is written there. Raises OtherOwner where the store is not, or no longer,
        this run's; StorageError where that cannot be told now."""
        if not self.enter():
            raise StorageError(
                f"{self._store.url} is held by {self.watched}, which is watched for a sign of life"
            )
        assert self._claim is not None
        if self._claim.is_lost():
            raise OtherOwner(
                f"{self._store.url} was taken over by {self.watched}; this start no longer uploads "
                "there"
            )
        if not self._marked:
            if not self._store.create(RUN, json.dumps(new_identity(self.run)).encode()):
                self._compare()
            self._marked = True

    def release(self) -> None:
        """The next start need not wait. A store that does not answer is left to find out by
        itself."""
        if self._claim is not None:
            thread = threading.Thread(target=self._claim.release, daemon=True, name="release")
            thread.start()
            thread.join(_PARTING)


class Entry(NamedTuple):
    """run: the run's id, on all ranks. owner: on rank 0, where the run uploads. store: None where
    it did not answer."""

    run: str
    owner: Ownership | None
    store: Store | None


def enter(
    folder: RunFolder,
    store: Store | None,
    lease: float,
    collectives: Collectives,
    heartbeat: Heartbeat,
    start: str,
    say: Callable[[str], None],
) -> Entry:
    """All ranks together, before the first checkpoint is looked for: which run this is, and the
    store's lock.

    Raises OtherOwner; StorageError where the store does not answer and there is no checkpoint at
    hand.
    """
    owner = (
        Ownership(folder, store, lease, start)
        if store is not None and collectives.rank == 0
        else None
    )

    def look() -> str:
        assert owner is not None
        try:
            return "entered" if owner.enter() else owner.watched
        except StorageError as error:
            if not candidates(folder.checkpoints):
                raise
            folder.incident({"event": "store not asked", "error": str(error)})
            return ""

    state, said = "", False
    while store is not None and (state := collectives.broadcast_from_rank0(look)) not in (
        "entered",
        "",
    ):
        if not said:
            say(
                f"{store.url} was held by {state}; waits up to {lease:g} s for a sign of life of it"
            )
        said = True
        heartbeat.beat("restore", 0)
        time.sleep(min(lease / 10, 0.5))
    run = collectives.broadcast_from_rank0(
        lambda: (owner.run if owner else run_of(folder)) or new_identity()["run"]
    )
    if owner:
        owner.run = run
    return Entry(run, owner, store if state == "entered" else None)


def _described(owner: dict[str, Any]) -> str:
    return (
        f"process {owner['process']} on {owner['host']} (run {owner.get('run')} in "
        f"{owner.get('folder')}, started {_when(owner['since'])})"
    )


def _made(identity: dict[str, Any]) -> str:
    return (
        f" (begun on {identity['host']} at {_when(identity['made'])})" if "made" in identity else ""
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
