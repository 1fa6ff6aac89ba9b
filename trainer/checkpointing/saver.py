"""Saving while training goes on.

    all ranks   step 8 | copy | step 9 | step 10 | agree | step 11 ...
                          |                         ^  |
    their threads         +-- write, hash, sync ----+  |
                                                       v
    rank 0's thread                       manifest, one rename, retention, upload

A save copies this rank's share to host memory and returns; a thread writes the file. At a later
step border (`trainer/borders.py`) all ranks agree that their files are written, and tell rank 0
sizes and hashes. Rank 0's thread publishes: the manifest last, then one rename. Until the rename
there is no checkpoint; a slow or dead rank delays it for ever rather than show it early. A save
that comes due while one is under way waits for it.
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
from trainer import records
from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.format import MANIFEST, FileEntry, Manifest, rank_file
from trainer.checkpointing.retention import prune
from trainer.checkpointing.snapshot import snapshot, write_snapshot
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import CheckpointSection
from trainer.distributed.collectives import Collectives, Flags
from trainer.engine.engine import Engine
from trainer.engine.state_keys import BUFFER
from trainer.run_folder import RunFolder


class SaveFailed(StorageError):
    """A checkpoint that had to be written was not. The message has the reason."""


class _Pending(NamedTuple):
    """A save under way: the manifest, which does not state the files yet; the folder where they are
    gathered; and this rank's file."""

    manifest: Manifest
    staging: Path
    file: Future[FileEntry]


class Saver:
    """Saves the engine of this rank, together with the savers of all other ranks.

    attempt: the name of this start, which tells its unfinished files from those of a start that
    died. uploader: is offered each checkpoint once it stands.
    """

    def __init__(
        self,
        folder: RunFolder,
        engine: Engine,
        collectives: Collectives,
        section: CheckpointSection,
        *,
        attempt: str,
        uploader: Uploader | None,
    ) -> None:
        self._folder, self._catalog = folder, LocalCatalog(folder)
        self._engine, self._collectives = engine, collectives
        self._section, self._attempt, self._uploader = section, attempt, uploader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._published: Future[None] | None = None  # rank 0
        self._failed: dict[int, str] = {}  # rank 0: why checkpoints were not published, by step
        self._buffer: Tensor | None = None
        self.stalled = 0.0  # seconds that training has waited for saves
        collectives.broadcast_from_rank0(self._catalog.prepare)

    @property
    def writing(self) -> bool:
        """Whether this rank's file is still on its way."""
        return self._pending is not None and not self._pending.file.done()

    @property
    def under_way(self) -> int | None:
        """The step whose save is not committed yet, the same on all ranks; None if there is
        none."""
        return self._pending.manifest.step if self._pending else None

    def save(self, manifest: Manifest) -> None:
        """All ranks together: copy the state to host memory, and begin to write it. Returns at
        once, or, where saves are synchronous, once it is on disk."""
        started = time.perf_counter()
        self.drain()
        staging = self._catalog.staging(manifest.step, self._attempt)
        content = snapshot(self._tensors(), self._buffer)
        self._buffer = content.payload
        path = staging / rank_file(self._collectives.rank)
        file = self._thread.submit(write_snapshot, path, content)
        self._pending = _Pending(manifest, staging, file)
        if not self._section.asynchronous:
            self.drain()
        self.stalled += time.perf_counter() - started

    def _tensors(self) -> list[tuple[str, Tensor]]:
        tensors = [
            (f"{state_key}/{fragment.name}@{fragment.start}", value)
            for state_key, fragment, value in self._engine.owned()
        ]
        if self._collectives.rank == 0:
            buffers = self._engine.buffers()
            tensors += [(f"{BUFFER}/{name}@0", value) for name, value in buffers.items()]
        return tensors

    def commit(self) -> None:
        """All ranks together, once no rank is `writing`: publish the checkpoint, or give it up
        where a rank failed."""
        self._look_at_published()
        if self._pending is None:
            return
        manifest, staging, file = self._pending
        self._pending = None
        try:
            mine: FileEntry | str = file.result()
        except OSError as error:
            mine = f"rank {self._collectives.rank}: {error.strerror or error}"
        entries = self._collectives.all_gather(mine)
        if self._collectives.rank != 0:
            return
        errors = [entry for entry in entries if isinstance(entry, str)]
        if errors:
            self._give_up(manifest.step, staging, "; ".join(errors))
            return
        manifest.files = {rank_file(rank): entry for rank, entry in enumerate(entries)}
        self._published = self._thread.submit(self._publish, manifest, staging)

    def _publish(self, manifest: Manifest, staging: Path) -> None:
        step = manifest.step
        try:
            self._catalog.publish(manifest, staging)
            self._catalog.note_saved(step)
        except (OSError, StorageError) as error:
            self._give_up(step, staging, str(error))
            return
        if self._uploader:
            self._uploader.offer(step)
        try:
            prune(self._catalog, step, self._section)
        except (OSError, StorageError) as error:
            self._folder.incident({"event": "retention", "step": step, "error": str(error)})
            self._say(f"old checkpoints could not be removed: {error}; the next save tries again")

    def _give_up(self, step: int, staging: Path, reason: str) -> None:
        """Training goes on: the older checkpoints stand, and the next save tries again."""
        shutil.rmtree(staging, ignore_errors=True)
        self._failed[step] = reason
        self._folder.incident({"event": "checkpoint not saved", "step": step, "error": reason})
        self._say(
            f"the checkpoint of step {step} was not saved: {reason}. Training goes on, and the "
            f"next save tries again; {last_good(self._catalog)}"
        )

    def _say(self, line: str) -> None:
        records.say(f"{self._folder.path.name}: {line}")

    def drain(self, alive: Callable[[], Any] = lambda: None) -> None:
        """All ranks together: wait until nothing is under way.

        alive: called again and again meanwhile.
        """
        while self._collectives.agree(Flags(writing=self.writing)).writing:
            alive()
            time.sleep(0.01)
        self.commit()
        while self._collectives.agree(Flags(writing=self._publishing())).writing:
            alive()
            time.sleep(0.01)
        self._look_at_published()

    def _look_at_published(self) -> None:
        """Raises an error of publishing that nobody foresaw."""
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
        """Wait for this rank's thread to end."""
        self._thread.shutdown()


def last_good(catalog: LocalCatalog) -> str:
    """The newest checkpoint in words, with its age."""
    for step in catalog.steps():
        try:
            saved = (catalog.folder(step) / MANIFEST).stat().st_mtime
        except OSError:
            continue  # it is being removed
        return f"the last good one is of step {step}, saved {records.ago(saved)}"
    return "there is no good one yet"
