"""Fetches one shard's bytes from a store: in parallel ranges, with a second request for a
straggler, and with its checksum compared on arrival."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Event
from typing import Any

import xxhash

from data_pipeline.shards.manifest import ShardEntry
from data_pipeline.storage import (
    AccessDenied,
    StorageError,
    Store,
    Throttled,
    TooShort,
    Truncated,
    Unreachable,
    open_store,
)
from model.errors import DataError

_RANGE = 4 * 2**20
_REQUESTS = 16  # at a time, of one process
# What may be over when it is tried again.
_PASSING = (Unreachable, Throttled, Truncated, AccessDenied)

Incident = Callable[[dict[str, Any]], None]


class ShardDamaged(DataError):
    """The stored shard itself does not match its checksum, or is gone."""


class Fetcher:
    """Fetches shards; threads may share it.

    hedge_after: seconds after which a range is asked for a second time; the first answer counts.
    retry_seconds: how long a store that does not answer is tried again. incident: told of every
    fault, also of those that passed.
    """

    def __init__(
        self, *, hedge_after: float = 5.0, retry_seconds: float = 600.0, incident: Incident
    ) -> None:
        self.hedge_after, self.retry_seconds, self.incident = hedge_after, retry_seconds, incident
        self._pool = ThreadPoolExecutor(_REQUESTS, "fetch")
        self._closing = Event()

    def fetch(self, store: Store, entry: ShardEntry) -> bytes:
        """Return the shard's bytes, whose checksum matches.

        Raises ShardDamaged if it does not match twice, or if the shard is gone or cut; the store's
        error if the store does not answer for longer than `retry_seconds`.
        """
        for attempt in range(2):
            content = self._retried(store, entry)
            if len(content) == entry.bytes and xxhash.xxh3_128_hexdigest(content) == entry.xxh3:
                return content
            self.incident(
                {"event": "checksum mismatch", "shard": entry.name, "attempt": attempt + 1}
            )
        raise ShardDamaged(
            f"{store.url}/{entry.name} does not match its checksum; make it again, or restore it"
        )

    def _retried(self, store: Store, entry: ShardEntry) -> bytes:
        started, pause = time.monotonic(), 0.2
        while True:
            try:
                return self._ranges(store, entry)
            except TooShort as error:
                raise ShardDamaged(f"{error}; the stored shard is cut") from error
            except _PASSING as error:
                if self._closing.is_set() or time.monotonic() - started > self.retry_seconds:
                    raise
                self.incident({"event": "storage fault", "shard": entry.name, "error": str(error)})
                if isinstance(error, AccessDenied):
                    # Credentials may have been renewed meanwhile. A file of them that is just being
                    # written may hold half of them: then the next look finds the rest.
                    with contextlib.suppress(StorageError):
                        store = open_store(store.url)
            except StorageError as error:
                raise ShardDamaged(f"{error}") from error
            self._closing.wait(random.uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, 30.0)

    def close(self) -> None:
        """Try no further: whoever waits gets the last error."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ranges(self, store: Store, entry: ShardEntry) -> bytes:
        starts = range(0, entry.bytes, _RANGE)

        def ask(start: int) -> Future[bytes]:
            return self._pool.submit(
                store.read, entry.name, start, min(_RANGE, entry.bytes - start)
            )

        asked = [(partial(ask, start), ask(start)) for start in starts]
        return b"".join([self._first_answer(future, again, entry) for again, future in asked])

    def _first_answer(
        self, future: Future[bytes], again: Callable[[], Future[bytes]], entry: ShardEntry
    ) -> bytes:
        done, _ = wait([future], timeout=self.hedge_after)
        answers = [future]
        if not done:
            self.incident({"event": "slow request, asked again", "shard": entry.name})
            answers.append(again())
        while answers:
            done, _ = wait(answers, return_when=FIRST_COMPLETED)
            for answer in done:
                answers.remove(answer)
                if (error := answer.exception()) is None:
                    return answer.result()
        assert error is not None
        raise error
