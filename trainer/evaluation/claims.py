"""Who evaluates what, where several evaluators watch one run: a claim is an object on the run's own store.

A claim NAME.K is created, never overwritten by another: of those who want it, one wins. Its holder renews it; one that
does not change for a lease's time, or whose process is gone from this machine, is taken over by creating NAME.K+1. No
clocks are compared. A holder that was only asleep loses nothing: results appear whole and once, whoever makes them.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from typing import Any

import psutil

from data_pipeline.storage import ObjectMissing, StorageError, Store

log = logging.getLogger(__name__)
FOLDER = "evaluation/claims"


class Claims:
    """lease: seconds without a renewal after which a claim is free."""

    def __init__(self, store: Store, lease: float) -> None:
        self._store, self._lease = store, lease
        self._owner = {
            "host": platform.node(), "process": os.getpid(), "started": psutil.Process().create_time(),
        }  # fmt: skip
        self._seen: dict[str, tuple[bytes, float]] = {}  # object -> its content, and since when it is that
        self._beats = 0

    def take(self, name: str) -> Claim | None:
        """The claim, held until it is released; None while another evaluator holds it. Raises StorageError."""
        prefix = f"{FOLDER}/{name}."
        numbers = (entry.name.removeprefix(prefix) for entry in self._store.list(prefix))
        attempts = sorted(int(number) for number in numbers if number.isdigit())  # else: a renewal on its way
        if attempts and not self._is_free(f"{prefix}{attempts[-1]}"):
            return None
        target = f"{prefix}{attempts[-1] + 1 if attempts else 1}"
        if not self._store.create(target, self._content()):
            return None
        for old in attempts:
            self._store.remove(f"{prefix}{old}")
        return Claim(self, target)

    def _is_free(self, target: str) -> bool:
        try:
            content = self._store.read(target)
        except ObjectMissing:
            return False  # released this moment: the next look will tell
        before, since = self._seen.get(target, (b"", 0.0))
        if content != before:
            self._seen[target] = (content, time.monotonic())
            return _is_gone(json.loads(content))
        return time.monotonic() - since > self._lease or _is_gone(json.loads(content))

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._owner, "beat": self._beats}).encode()

    def renew(self, target: str) -> None:
        try:
            self._store.replace(target, self._content())
        except StorageError as error:
            log.warning("could not renew %s: %s", target, error)

    def remove(self, target: str) -> None:
        self._store.remove(target)

    @property
    def pause(self) -> float:
        return self._lease / 4


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; nothing can be said of others."""
    if owner["host"] != platform.node():
        return False
    try:
        process = psutil.Process(owner["process"])
        return bool(abs(process.create_time() - owner["started"]) > 1 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Claim:
    """Held, and renewed by a thread, while the context lasts."""

    def __init__(self, claims: Claims, target: str) -> None:
        self._claims, self._target = claims, target
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="claim")
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(self._claims.pause):
            self._claims.renew(self._target)

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._claims.remove(self._target)
        except StorageError as error:
            log.warning("could not release %s: %s", self._target, error)
