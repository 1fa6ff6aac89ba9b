"""Which run a folder and a store hold, and that one process at a time writes to a store.

`run.json`, in the folder and on the store, names the run for good. `owner/run.K` on the store is
the lock of the run's rank 0: a claim as evaluators use it, which is renewed while the run lives. A
start takes a lock over by proof only: its holder has ended on this machine, or its renewals stay
away for a lease's time while the start watches. No clocks are compared.
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
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog
from trainer.distributed.claims import Claim, Claims, is_here
from trainer.distributed.collectives import Collectives
from trainer.resilience.heartbeat import Heartbeat
from trainer.run_folder import RUN, RunFolder

FOLDER, NAME = "owner", "run"
# Seconds for which a process of this machine that was just killed may still be ending.
_ENDING = 5.0
_PARTING = 5.0  # seconds that a store may take to release the lock: fewer than a rank has to leave


class OtherOwner(ConfigError):
    """The store belongs to another run, or to a start of this run that lives elsewhere."""


def run_of(folder: RunFolder) -> str | None:
    """The id of the run in a folder, by its run.json or its newest checkpoint; None where neither
    has one."""
    if identity := folder.read_identity():
        return str(identity["run"])
    newest = LocalCatalog(folder).newest_manifest()
    return newest.run or None if newest else None


def run_on(store: Store) -> dict[str, Any] | None:
    """The identity of the run that uploads to a store, by its run.json or its newest checkpoint;
    None where there is none yet, or only a run of an earlier version, which is adopted."""
    try:
        identity: dict[str, Any] = json.loads(store.read(RUN))
        return {**identity, "run": str(identity["run"])}
    except ObjectMissing:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise OtherOwner(
            f"{store.url}/{RUN} does not name a run; remove it if the store is this run's"
        ) from error
    newest = RemoteCatalog(store).newest_manifest()
    return {"run": newest.run} if newest and newest.run else None


def agreed_run(folder: RunFolder, store: Store, run: str | None) -> str | None:
    """The id of the run that a folder and a store hold together; None where neither has one yet.

    run: the folder's. An empty folder takes the store's. Raises OtherOwner where they hold two
    runs, and StorageError.
    """
    there = run_on(store)
    if there is None or run == there["run"]:
        return run
    if run is not None or LocalCatalog(folder).steps():
        mine = f"run {run}" if run else "a run of an earlier version, without an id"
        raise OtherOwner(
            f"{store.url} holds run {there['run']}{_made(there)}, and {folder.path} is {mine}; "
            "give this run a checkpoint.upload of its own, or go on with that one "
            "in an empty run folder"
        )
    return str(there["run"])


def holder_of(store: Store) -> str | None:
    """The holder of a store's lock, in words; None where nobody holds it. Raises StorageError."""
    holder = Claims(store, 0.0, FOLDER).holder(NAME)
    return _described(holder) if holder else None


def new_identity(run: str | None = None) -> dict[str, Any]:
    """What `run.json` says of a run that begins here, with this id or a new one."""
    return {"run": run or uuid.uuid4().hex[:12], "host": platform.node(), "made": time.time()}


class Ownership:
    """The hold of a run's rank 0 on the store. Rank 0 enters before it restores, and its uploading
    thread confirms before each upload.

    lease: seconds without a renewal after which the hold of another machine ends. attempt: the name
    of this start.
    """

    def __init__(self, folder: RunFolder, store: Store, lease: float, attempt: str) -> None:
        self._folder, self.store = folder, store
        self.run = run_of(folder)
        self._claims = Claims(store, lease, FOLDER)
        self._claims.owner |= {
            "run": self.run,
            "start": attempt,
            "folder": str(folder.path),
            "since": time.time(),
        }
        self._claim: Claim | None = None
        self._agreed = False  # whether the store is known to hold no other run
        self._marked = False  # whether the store names this run
        # Of each holder that is watched, its beat when it was first seen, and when that was.
        self._watched: dict[str, tuple[int, float]] = {}

    def enter(self) -> bool:
        """Try once to hold the store. Returns False while another holder is watched for a sign of
        life.

        Raises OtherOwner where that holder lives, or the store is another run's; StorageError.
        """
        if self._claim is None:
            if isinstance(self.store, LocalStore):
                try:
                    self.store.root.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise StorageError(
                        f"{self.store.url} cannot be made: {error.strerror or error}"
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
        if holder["beat"] != beat or (is_here(holder) and time.monotonic() - since > _ENDING):
            raise OtherOwner(
                f"{self.store.url} is in use by {_described(holder)}; let that run end, or give "
                "this one a checkpoint.upload of its own"
            )

    @property
    def watched(self) -> str:
        """Whose sign of life is awaited, in words."""
        holder = self._claims.holder(NAME)
        return _described(holder) if holder else "another process"

    def _compare(self) -> None:
        """Take the store's run for that of an empty folder. Raises OtherOwner and StorageError."""
        self.run = agreed_run(self._folder, self.store, self.run) or new_identity()["run"]

    def confirm(self) -> None:
        """Make sure that the store is this run's, before anything is written there. Raises
        OtherOwner where it is not, or no longer; StorageError where that cannot be told now."""
        if not self.enter():
            raise StorageError(
                f"{self.store.url} is held by {self.watched}, which is watched for a sign of life"
            )
        assert self._claim is not None
        if self._claim.is_lost():
            raise OtherOwner(
                f"{self.store.url} was taken over by {self.watched}; "
                "this start no longer uploads there"
            )
        if not self._marked:
            if not self.store.create(RUN, json.dumps(new_identity(self.run)).encode()):
                self._compare()
            self._marked = True

    def release(self) -> None:
        """Let go of the store, so that the next start need not wait. A store that does not answer
        in time is left: the lease ends by itself."""
        if self._claim is not None:
            thread = threading.Thread(target=self._claim.release, daemon=True, name="release")
            thread.start()
            thread.join(_PARTING)


class Entered(NamedTuple):
    """What `enter` found out.

    run: the run's id, on all ranks. owner: on rank 0, where the run uploads. store: None where
    there is none, or it did not answer.
    """

    run: str
    owner: Ownership | None
    store: Store | None


def enter(
    folder: RunFolder,
    store: Store | None,
    *,
    lease: float,
    collectives: Collectives,
    heartbeat: Heartbeat,
    attempt: str,
    say: Callable[[str], None],
) -> Entered:
    """All ranks together, before the first checkpoint is looked for: find out which run this is,
    and take the store's lock.

    lease, attempt: as `Ownership` has them. say: prints a line for the user, on rank 0. Raises
    OtherOwner; StorageError where the store does not answer and there is no checkpoint at hand.
    """
    owner = (
        Ownership(folder, store, lease, attempt)
        if store is not None and collectives.rank == 0
        else None
    )

    def look() -> bool | str:
        """True once the store is held, and False where there is none, or none that answers;
        else who holds it, in words."""
        if owner is None:
            return False
        try:
            return owner.enter() or f"{owner.store.url} was held by {owner.watched}"
        except StorageError as error:
            if not LocalCatalog(folder).steps():
                raise
            folder.incident({"event": "store not asked", "error": str(error)})
            return False

    def name_run() -> str:
        run = (owner.run if owner else run_of(folder)) or str(new_identity()["run"])
        if owner:
            owner.run = run
        return run

    held = collectives.broadcast_from_rank0(look)
    if isinstance(held, str):
        say(f"{held}; waits up to {lease:g} s for a sign of life of it")
    while isinstance(held, str):
        heartbeat.beat("restore", 0)
        time.sleep(min(lease / 10, 0.5))
        held = collectives.broadcast_from_rank0(look)
    run = collectives.broadcast_from_rank0(name_run)
    return Entered(run, owner, store if held else None)


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
