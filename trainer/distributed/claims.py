"""Claims: they settle who evaluates what when several evaluators watch one run.

A claim is an object on the run's own store:

    evaluation/claims/step-8.1   created by evaluator A, which renews it while it works
    evaluation/claims/step-8.2   created by B, once step-8.1 has not changed for a lease's time

An object NAME.K is created, never overwritten: of those who want it, one wins. A claim is taken
over, by creating NAME.K+1, when it has not changed for a lease's time, or when its process is gone
from this machine. No clocks are compared. A holder that was only asleep does no harm: results
appear whole and once, whoever makes them.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from typing import Any

import psutil

from data_pipeline.storage import ObjectMissing, StorageError, Store
from model.processes import machine

log = logging.getLogger(__name__)
FOLDER = "evaluation/claims"


class Claims:
    """The claims of a run, as one evaluator sees them.

    lease: seconds without a renewal after which a claim is free. folder: of the claims on the
    store.
    """

    def __init__(self, store: Store, lease: float, folder: str = FOLDER) -> None:
        self._store, self._lease, self._folder = store, lease, folder
        self.owner: dict[str, Any] = {  # what a claim says of its holder
            "host": platform.node(),
            "machine": machine(),
            "process": os.getpid(),
            "started": psutil.Process().create_time(),
            "holder": uuid.uuid4().hex,
        }
        # By object: its content, and since when we have seen that content.
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._beats = 0

    def take(self, name: str) -> Claim | None:
        """Take a claim, which is held until it is released; None while another evaluator holds it.

        Raises StorageError.
        """
        prefix, attempts = f"{self._folder}/{name}.", self._attempts(name)
        newest = f"{prefix}{attempts[-1]}" if attempts else ""
        if newest and self._is_ours(newest):  # of an earlier try, whose answer was lost
            return Claim(self, name, newest)
        if newest and not self._is_free(newest):
            return None
        target = f"{prefix}{attempts[-1] + 1 if attempts else 1}"
        created = self._store.create(target, self._content())
        if not created and not self._is_ours(target):  # it may be ours: an answer was lost
            return None
        for old in attempts:
            self._store.remove(f"{prefix}{old}")
        return Claim(self, name, target)

    def _attempts(self, name: str) -> list[int]:
        prefix = f"{self._folder}/{name}."
        numbers = (entry.name.removeprefix(prefix) for entry in self._store.list(prefix))
        # What is no number is a renewal on its way.
        return sorted(int(number) for number in numbers if number.isdigit())

    def _read(self, target: str) -> bytes:
        try:
            return self._store.read(target)
        except ObjectMissing:
            return b""

    def holder(self, name: str) -> dict[str, Any] | None:
        """Who holds a claim; None where nobody does, or where it is just being released. Raises
        StorageError."""
        attempts = self._attempts(name)
        content = self._read(f"{self._folder}/{name}.{attempts[-1]}") if attempts else b""
        return _record(content)

    def _is_free(self, target: str) -> bool:
        content = self._read(target)
        if not content:
            return False  # released this moment: the next look will tell
        before, since = self._seen.get(target, (b"", 0.0))
        if content != before:
            since = time.monotonic()
            self._seen[target] = (content, since)
        owner = _record(content)  # what is no claim shows no sign of life either
        return time.monotonic() - since > self._lease or (owner is not None and _is_gone(owner))

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self.owner, "beat": self._beats}).encode()

    def holds(self, name: str, target: str) -> bool:
        """Whether a claim that was taken as `target` is still ours. Raises StorageError."""
        mine = int(target.rpartition(".")[2])
        return self._is_ours(target) and all(attempt <= mine for attempt in self._attempts(name))

    def _is_ours(self, target: str) -> bool:
        content = self._read(target)
        owner = _record(content)
        return owner is not None and owner.get("holder") == self.owner["holder"]

    def renew(self, target: str) -> None:
        """Show that the holder is alive. Raises StorageError."""
        self._store.replace(target, self._content())

    def remove(self, target: str) -> None:
        """Remove the object of a claim. Raises StorageError."""
        self._store.remove(target)

    @property
    def pause(self) -> float:
        """Seconds between two renewals."""
        return self._lease / 4


def _record(content: bytes) -> dict[str, Any] | None:
    """What a claim says of its holder; None where it is no claim, as after a foreign write."""
    try:
        owner = json.loads(content)
    except ValueError:
        return None
    is_claim = isinstance(owner, dict) and {"host", "process", "started", "beat"} <= owner.keys()
    return owner if is_claim else None


def is_here(owner: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine, or container: hosts may share their names."""
    return bool(owner["host"] == platform.node() and owner.get("machine", machine()) == machine())


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; nothing can be said of others."""
    if not is_here(owner):
        return False
    try:
        process = psutil.Process(owner["process"])
        return bool(
            abs(process.create_time() - owner["started"]) > 1
            or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True


class Claim:
    """A claim that is held, and renewed by a thread, until it is released.

    Once lost it stays lost, also where nobody holds it any more: its holder slept while others
    worked, and must not put its name over theirs.
    """

    def __init__(self, claims: Claims, name: str, target: str) -> None:
        self._claims, self._name, self._target = claims, name, target
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="claim")
        self._thread.start()

    def _keep(self) -> None:
        said = False
        while not self._ended.wait(self._claims.pause):
            try:
                self.renew()
                said = False
            except Exception as error:  # noqa: BLE001 - whatever it was, the next renewal may pass
                if not said:  # once for each time that the store is away
                    log.warning("could not renew %s: %s", self._target, error)
                said = True

    def renew(self) -> None:
        """Write the claim again, with what it says of its holder now. Raises StorageError."""
        if not self.is_lost():
            self._claims.renew(self._target)

    def is_lost(self) -> bool:
        """Whether it was taken over. Raises StorageError."""
        self._lost = self._lost or not self._claims.holds(self._name, self._target)
        return self._lost

    def release(self) -> None:
        """Stop renewing the claim, and remove it unless it was lost. A store that is away is
        warned of."""
        self._ended.set()
        self._thread.join()
        try:
            if not self.is_lost():
                self._claims.remove(self._target)
        except StorageError as error:
            log.warning("could not release %s: %s", self._target, error)
