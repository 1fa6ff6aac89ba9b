"""Shards at hand: mapped where they lie in a folder, or downloaded once per host into a cache that
its ranks share.

    CACHE/ab/abcd....tar        a shard, named by its sha256: later runs and other data sets find it
    CACHE/ab/abcd....HEX.part   a download on its way; those of dead processes are removed
    CACHE/locks/abcd...         locked by the process that downloads this shard; others wait for it
    CACHE/locks/eviction        locked while room is made, and while a new .part gets its lock

    reader                     downloader                          whoever makes room
    open .tar                  lock locks/abcd (exclusive)         lock locks/eviction (exclusive)
    lock .tar (shared)         lock locks/eviction:                oldest first: lock .tar
    same inode? else retry       make room, create and lock .part    (exclusive, do not wait)
    map it, keep it open       write .part, rename it to .tar      held? skip it : remove it

The kernel drops a dead process's locks, so nothing has to be cleaned up after a crash. Nothing here
is needed for correctness: where the cache cannot be used, a shard is kept in memory, and that is
reported.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from data_pipeline.shards.format import ShardReader, row_problem
from data_pipeline.shards.manifest import Manifest, ShardEntry
from data_pipeline.storage import LocalStore, StorageError, Store
from data_pipeline.streaming.fetch import Fetcher, Incident, ShardDamaged
from model.errors import ConfigError, DataError


class ShardCache:
    """A folder of shards on a local disk.

    limit: bytes; it is exceeded only if every shard in the folder is in use. incident: told when
    that happens.
    """

    def __init__(self, folder: Path | str, limit: int, incident: Incident) -> None:
        self.folder, self.limit, self.incident = Path(folder), limit, incident

    def check(self) -> None:
        """Try the locks as they are used.

        Raises ConfigError if they do not work: ranks would remove shards that others read, and
        download each one as often as there are ranks. A folder that cannot be written raises
        nothing: the first shard will report it.
        """
        probe = self.folder / f"probe-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
        except OSError:
            return
        try:
            with probe.open("rb") as held, probe.open("rb") as other:
                fcntl.flock(held, fcntl.LOCK_SH)
                fault = "a lock that is held is given a second time" if _is_free(other) else ""
                fcntl.flock(held, fcntl.LOCK_UN)
                fault = fault or ("" if _is_free(other) else "a lock that was let go stays")
        except OSError as error:
            fault = error.strerror or str(error)
        finally:
            probe.unlink(missing_ok=True)
        if fault:
            raise ConfigError(
                f"data.cache: locks do not work on the file system of {self.folder} ({fault}); "
                "give a folder on a disk of this machine (NFS needs lockd, Lustre the mount option "
                "flock), or leave it out to keep shards in memory"
            )

    def path(self, entry: ShardEntry) -> Path:
        return self.folder / entry.sha256[:2] / f"{entry.sha256}.tar"

    def hold(self, entry: ShardEntry) -> BinaryIO | None:
        """Open a cached shard, safe from eviction until it is closed; None if there is none.
        Raises OSError."""
        path = self.path(entry)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                os.utime(path)  # the least recently used one goes first
                return file
        file.close()  # evicted between opening and locking
        return None

    @contextmanager
    def downloading(self, entry: ShardEntry) -> Iterator[None]:
        """Let one process of a host at a time in. Raises OSError if the cache cannot be written."""
        with self._locked(entry.sha256):
            yield

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        with (self.folder / "locks" / name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def store(self, entry: ShardEntry, content: bytes) -> None:
        """Make room, and put a shard of checked bytes under its name. Raises OSError."""
        path = self.path(entry)
        part = path.with_name(f"{entry.sha256}.{uuid.uuid4().hex}.part")
        try:
            with self._locked("eviction"):
                self._make_room(len(content))
                path.parent.mkdir(parents=True, exist_ok=True)
                file = part.open("wb")
                fcntl.flock(file, fcntl.LOCK_EX)  # while we live, this is not a leftover
            with file:
                file.write(content)
                file.flush()
                part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def discard(self, entry: ShardEntry) -> None:
        """Remove a cached shard; whoever has it open keeps its bytes."""
        self.path(entry).unlink(missing_ok=True)

    def _make_room(self, incoming: int) -> None:
        """Remove leftovers, and the least recently used shards, until `incoming` bytes fit.

        The caller holds the lock "eviction". A new .part is locked under it too, so it is never
        taken for a leftover.
        """
        cached: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                if path.suffix == ".part":
                    self._remove_unless_locked(path)
                else:
                    status = path.stat()
                    cached.append((status.st_mtime, status.st_size, path))
        used = incoming + sum(size for _, size, _ in cached)
        for _, size, path in sorted(cached):
            if used <= self.limit:
                return
            if self._remove_unless_locked(path):
                used -= size
        if used > self.limit:
            self.incident({"event": "cache over its limit", "bytes": used, "limit": self.limit})

    @staticmethod
    def _remove_unless_locked(path: Path) -> bool:
        with suppress(FileNotFoundError), path.open("rb") as file:
            if not _is_free(file):
                return False
            path.unlink(missing_ok=True)
            return True
        return False


def _is_free(file: BinaryIO) -> bool:
    """Lock a file if nobody else holds a lock on it, and say whether that was so. Raises OSError if
    the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Shards:
    """The shards of one data set, opened on demand. Threads may share it.

    A shard's checksum is taken at its first use in a process. fingerprint: of the data set. cache:
    for shards of a remote store; None keeps them in memory. keep: how many shards stay open, the
    last used ones.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        fingerprint: str,
        cache: ShardCache | None,
        fetcher: Fetcher,
        keep: int,
    ) -> None:
        self.store, self.manifest, self.fingerprint = store, manifest, fingerprint
        self.cache, self.fetcher = cache, fetcher
        # (sha256, inode, mtime) of the files whose checksum was taken.
        self._checked: set[tuple[str, int, int]] = set()
        self._sound: set[str] = set()  # sha256 of the shards whose rows were checked
        self._keep = keep
        self._recent: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = Lock()

    def open(self, number: int) -> ShardReader:
        """Return a reader of the shard `number`. Raises ShardDamaged if the stored shard is bad or
        gone, StorageError if the store does not answer."""
        with self._lock:
            if (reader := self._recent.get(number)) is not None:
                self._recent.move_to_end(number)
                return reader
        reader = self._open(number)
        self._check_rows(self.manifest.shards[number], reader)
        with self._lock:
            self._recent[number] = reader
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return reader

    def _check_rows(self, entry: ShardEntry, reader: ShardReader) -> None:
        """Check ids and labels: bytes may match their checksum and yet hold what no codebook and no
        list of classes has. Raises ShardDamaged."""
        if entry.sha256 not in self._sound:
            m = self.manifest
            if problem := row_problem(reader.records, m.codebook_size, len(m.classes)):
                raise ShardDamaged(
                    f"{self.store.url}/{entry.name} {problem}; make the data set again"
                )
            self._sound.add(entry.sha256)

    def _open(self, number: int) -> ShardReader:
        entry = self.manifest.shards[number]
        if isinstance(self.store, LocalStore):
            try:
                return self._reader(self.store.open(entry.name), entry)
            except (OSError, StorageError) as error:
                raise ShardDamaged(f"{error}; fetch or make it again") from error
            except DataError as error:
                raise ShardDamaged(f"{self.store.root / entry.name}: {error}") from error
        if self.cache is not None:
            try:
                return self._cached(self.cache, entry)
            except OSError as error:
                self._cache_failed(entry, error)
        return self._in_memory(entry, self.fetcher.fetch(self.store, entry))

    def _in_memory(self, entry: ShardEntry, content: bytes) -> ShardReader:
        return ShardReader(content, entry.rows, self.manifest.layout)

    def _cache_failed(self, entry: ShardEntry, error: OSError) -> None:
        self.fetcher.incident(
            {
                "event": "cache not usable, shard kept in memory",
                "shard": entry.name,
                "error": str(error),
            }
        )

    def _cached(self, cache: ShardCache, entry: ShardEntry) -> ShardReader:
        while True:
            file = cache.hold(entry)
            if file is None:
                with cache.downloading(entry):
                    file = cache.hold(entry)  # another rank may have been faster
                    if file is None:
                        content = self.fetcher.fetch(self.store, entry)
                        try:
                            cache.store(entry, content)
                        except OSError as error:  # a full disk, say
                            self._cache_failed(entry, error)
                            return self._in_memory(entry, content)
                        file = cache.hold(entry)
                        if file is None:
                            continue  # evicted already
            try:
                return self._reader(file, entry)
            except DataError as error:  # a disk that lost what it was given
                self.fetcher.incident(
                    {"event": "damaged in the cache, fetched again", "error": str(error)}
                )
                file.close()
                cache.discard(entry)

    def _reader(self, file: BinaryIO, entry: ShardEntry) -> ShardReader:
        status = os.fstat(file.fileno())
        key = (
            entry.sha256,
            status.st_ino,
            status.st_mtime_ns if isinstance(self.store, LocalStore) else 0,
        )
        reader = ShardReader(
            file, entry.rows, self.manifest.layout, None if key in self._checked else entry.xxh3
        )
        self._checked.add(key)
        return reader
