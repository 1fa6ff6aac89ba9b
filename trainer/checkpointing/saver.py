"""Saving while training goes on.

A save copies this rank's share to host memory and returns; a thread writes, syncs and hashes the
file. At a later step border all ranks agree that their files are written, tell each other sizes and
hashes, and rank 0's thread publishes: manifest last, one rename, retention, upload. Until the
rename there is no checkpoint; a slow or dead rank delays it for ever rather than show it early. A
save that comes due while one is under way waits for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from data_pipeline.storage import StorageError
from model.files import sync, write_atomically
from trainer import records
from trainer.checkpointing.format import (
    BUFFER,
    MANIFEST,
    PUBLISHED,
    FileEntry,
    Manifest,
    candidates,
    manifest_bytes,
    snapshot,
    write_snapshot,
)
from trainer.checkpointing.retention import prune, step_of
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import CheckpointSection
from trainer.distributed.collectives import Collectives, Flags
from trainer.engine.engine import Engine
from trainer.run_folder import RunFolder, step_folder


class SaveFailed(StorageError):
    """A checkpoint that had to be written was not. The message has the reason."""


class _Pending(NamedTuple):
    manifest: Manifest  # without its files
    staging: Path
    part: Future[FileEntry]


class Saver:
    """Of one rank. `attempt` tells this start's unfinished files from those of a start that
    died."""

    def __init__(
        self,
        folder: RunFolder,
        engine: Engine,
        collectives: Collectives,
        section: CheckpointSection,
        attempt: str,
        uploader: Uploader | None,
    ) -> None:
        self._folder, self._engine, self._collectives, self._section = (
            folder,
            engine,
            collectives,
            section,
        )
        self._attempt, self._uploader = attempt, uploader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._published: Future[None] | None = None  # rank 0
        self._failed: dict[int, str] = {}  # rank 0: why checkpoints were not published, by step
        self._buffer: Tensor | None = None
        self.stalled = 0.0  # seconds that training has waited for saves
        collectives.broadcast_from_rank0(self._clean)

    def _clean(self) -> None:
        self._folder.checkpoints.mkdir(exist_ok=True)
        for left in self._folder.checkpoints.glob("*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def writing(self) -> bool:
        """Whether this rank's file is still on its way."""
        return self._pending is not None and not self._pending.part.done()

    def save(self, manifest: Manifest) -> None:
        """All ranks together. Returns once the state is in host memory, or, if saving is
        synchronous, on disk."""
        started = time.perf_counter()
        self.drain()
        staging = self._folder.checkpoints / f"{step_folder(manifest.step)}.{self._attempt}.tmp"
        content = snapshot(self._tensors(), self._buffer)
        self._buffer = content.payload
        part = self._thread.submit(
            write_snapshot, staging / _file_name(self._collectives.rank), content
        )
        self._pending = _Pending(manifest, staging, part)
        if not self._section.asynchronous:
            self.drain()
        self.stalled += time.perf_counter() - started

    def _tensors(self) -> list[tuple[str, Tensor]]:
        found = [
            (f"{kind}/{part.name}@{part.start}", value)
            for kind, part, value in self._engine.owned()
        ]
        if self._collectives.rank == 0:
            found += [
                (f"{BUFFER}/{name}@0", value) for name, value in self._engine.buffers().items()
            ]
        return found

    def commit(self) -> None:
        """All ranks together, once no rank is `writing`: publish, or give the checkpoint up where a
        rank failed."""
        self._look_at_published()
        if self._pending is None:
            return
        manifest, staging, part = self._pending
        self._pending = None
        try:
            result: FileEntry | str = part.result()
        except OSError as error:
            result = f"rank {self._collectives.rank}: {error.strerror or error}"
        results = self._collectives.all_gather(result)
        if self._collectives.rank != 0:
            return
        errors = [found for found in results if isinstance(found, str)]
        if errors:
            self._give_up(manifest.step, staging, "; ".join(errors))
            return
        manifest.files = {_file_name(rank): found for rank, found in enumerate(results)}
        self._published = self._thread.submit(self._publish, manifest, staging)

    def _publish(self, manifest: Manifest, staging: Path) -> None:
        try:
            publish(manifest, staging, self._attempt)
        except (OSError, StorageError) as error:
            self._give_up(manifest.step, staging, str(error))
            return
        if self._uploader:
            self._uploader.offer(manifest.step)
        try:
            prune(self._folder.checkpoints, manifest.step, self._section)
        except OSError as error:
            self._folder.incident(
                {"event": "retention", "step": manifest.step, "error": str(error)}
            )
            self._say(f"old checkpoints could not be removed: {error}; the next save tries again")

    def _give_up(self, step: int, staging: Path, reason: str) -> None:
        """Training goes on: the older checkpoints stand, and the next save tries again."""
        shutil.rmtree(staging, ignore_errors=True)
        self._failed[step] = reason
        self._folder.incident({"event": "checkpoint not saved", "step": step, "error": reason})
        self._say(
            f"the checkpoint of step {step} was not saved: {reason}. Training goes on, and the "
            f"next save tries again; {last_good(self._folder.checkpoints)}"
        )

    def _say(self, line: str) -> None:
        records.say(f"{self._folder.path.name}: {line}")

    def drain(self, alive: Callable[[], Any] = lambda: None) -> None:
        """All ranks together: wait until nothing is under way. alive: called now and then
        meanwhile."""
        while self._collectives.agree(Flags(writing=self.writing)).writing:
            alive()
            time.sleep(0.01)
        self.commit()
        while self._collectives.agree(Flags(writing=self._publishing())).writing:
            alive()
            time.sleep(0.01)
        self._look_at_published()

    def _look_at_published(self) -> None:
        """Raises what nobody foresaw."""
        if self._published is not None and self._published.done():
            self._published.result()
            self._published = None

    def _publishing(self) -> bool:
        return self._published is not None and not self._published.done()

    def require(self, step: int) -> None:
        """All ranks together, after a drain. Raises SaveFailed on all of them where that step was
        not published."""
        reason = self._collectives.broadcast_from_rank0(lambda: self._failed.get(step))
        if reason is not None:
            raise SaveFailed(
                f"the checkpoint of step {step} was not saved: {reason}; make room or mend the "
                "storage, and run again: the older checkpoints stand"
            )

    def close(self) -> None:
        self._thread.shutdown()


def last_good(checkpoints: Path) -> str:
    """The newest checkpoint in words, with its age."""
    for path in candidates(checkpoints):
        try:
            written = (path / MANIFEST).stat().st_mtime
        except OSError:
            continue  # being removed
        return f"the last good one is of step {step_of(path)}, saved {records.ago(written)}"
    return "there is no good one yet"


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def publish(manifest: Manifest, staging: Path, attempt: str) -> None:
    """Rank 0: from here on it is a checkpoint. Raises OSError, and StorageError for a full disk."""
    target = staging.with_name(step_folder(manifest.step))
    write_atomically(staging / MANIFEST, manifest_bytes(manifest))
    sync(staging)
    if target.exists():  # of a past that was refused or rewound
        aside = target.with_name(f"{target.name}.old.{attempt}.tmp")
        target.rename(aside)
        staging.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(target)
    sync(target.parent)
    write_atomically(target.with_name(PUBLISHED), f"{manifest.step}\n".encode())
