"""Copies checkpoints to the store of a run while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from data_pipeline.storage import ObjectMissing, StorageError, open_store
from model.entry import leave_trace, unexpected
from model.errors import ADDPError, ConfigError
from trainer import records
from trainer.checkpointing.catalog import LocalCatalog, RemoteCatalog, is_left
from trainer.checkpointing.format import Damaged
from trainer.checkpointing.retention import is_permanent, prune
from trainer.checkpointing.run_records import send_records
from trainer.config.schema import CheckpointSection
from trainer.resilience.state import read_rewinds
from trainer.run_folder import DONE, RunFolder

_PAUSES = (1.0, 5.0, 15.0, 30.0)  # seconds between tries


def remove_left(remote: RemoteCatalog, rewinds: list[dict[str, int]]) -> list[int]:
    """Remove the checkpoints that were trained on data that a rewind leaves out. Restoring refuses
    them, and nobody shall evaluate them. Returns their steps. Raises StorageError."""
    gone = []
    for step in remote.steps():
        if step <= min(entry["step"] for entry in rewinds):
            break
        try:
            left = is_left(remote.manifest(step), rewinds)
        except (Damaged, ObjectMissing):
            continue
        if left:
            remote.remove(step)
            gone.append(step)
    return gone


class Uploader:
    """A thread of rank 0 that brings the newest checkpoint to the store, and tries again for as
    long as it takes, whatever the error. A checkpoint that is overtaken by a newer one before its
    turn is left out, unless it is permanent.

    confirm: raises where the store is not this run's: ConfigError for good, StorageError where that
    cannot be told now.
    """

    def __init__(
        self, folder: RunFolder, section: CheckpointSection, confirm: Callable[[], None]
    ) -> None:
        assert section.upload is not None
        self._folder, self._section, self._confirm = folder, section, confirm
        self._local, self._remote = LocalCatalog(folder), RemoteCatalog(open_store(section.upload))
        self.lost: ADDPError | None = None  # why nothing is uploaded any more
        self._wanted: list[int] = []  # steps, in the order of their upload
        self._withdrawing = False  # whether the store may still call the run complete
        self._newest: tuple[int, float] | None = None  # the newest known copy: step, when saved
        self._swept: list[dict[str, int]] = []  # the rewinds whose left copies are removed
        self._failures = 0  # tries in a row
        self._told = set[bool]()  # of what the console has been told: a checkpoint, a withdrawal
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="upload")
        self._thread.start()

    def offer(self, step: int) -> None:
        """Upload the checkpoint of that step. Those that still wait are left out for it, unless
        they are permanent."""
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
        self._newest = self._newest_copy()
        while self._await_work():
            step = self._wanted[0] if self._wanted else None
            try:
                self._work(step)
            except ConfigError as error:
                self._folder.incident({"event": "uploads ended", "step": step, "error": str(error)})
                with self._changed:
                    self.lost, self._wanted = error, []
                    self._changed.notify_all()
                return
            except Exception as error:  # noqa: BLE001 - even what nobody foresaw may pass
                self._fail(step, error)
                continue
            if self._failures:
                self._recover(step)
            with self._changed:
                self._wanted = [s for s in self._wanted if s != step]
                self._changed.notify_all()

    def _newest_copy(self) -> tuple[int, float] | None:
        try:
            newest = self._remote.newest_manifest()
        except Exception:  # noqa: BLE001 - uploads meet the same, and report it
            return None
        return (newest.step, newest.saved) if newest else None

    def _await_work(self) -> bool:
        """Wait for a checkpoint or a withdrawal. Returns False once there is none, and no more will
        come."""
        with self._changed:
            while not (self._wanted or self._withdrawing or self._closing):
                self._changed.wait()
            return bool(self._wanted or self._withdrawing)

    def _work(self, step: int | None) -> None:
        self._confirm()
        if self._withdrawing:
            self._remote.store.remove(DONE)
            with self._changed:
                self._withdrawing = False
                self._changed.notify_all()
        if step is not None:
            self._bring(step)

    def _fail(self, step: int | None, error: Exception) -> None:
        """Report an error where it is news, and wait for the next try."""
        news = (step is not None) not in self._told
        if self._failures == 0 or news:
            reason = self._reason(error)
            if self._failures == 0:
                self._folder.incident({"event": "upload", "step": step, "error": reason})
            if news:
                self._told.add(step is not None)
                self._say(self._late(step, reason))
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        with self._changed:
            self._changed.wait(pause)

    def _recover(self, step: int | None) -> None:
        tries = self._failures + 1
        self._folder.incident({"event": "upload recovered", "step": step, "tries": tries})
        store = self._remote.name
        brought = f": the checkpoint of step {step} is on {store}" if step is not None else ""
        self._say(f"the store answers again{brought}")
        self._failures = 0
        self._told.clear()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ADDPError | OSError):
            return str(error)
        return unexpected(error, leave_trace(error, self._folder.trace(0)))

    def _bring(self, step: int) -> None:
        """The checkpoint first, then the records that say how it came about, and only then what it
        replaces goes."""
        try:
            self._remote.add(self._local, step)
        except Damaged as error:
            self._folder.incident({"event": "not uploaded", "step": step, "error": str(error)})
            self._say(f"the checkpoint of step {step} was not copied: {error}; {self._last_good()}")
            return
        except (OSError, ObjectMissing) as error:
            path = self._local.folder(step)
            if path.exists():
                raise StorageError(f"{path}: {error}") from error
            return  # retention was faster: a newer one follows
        self._newest = step, time.time()
        send_records(self._folder, self._remote.store)
        rewinds = read_rewinds(self._folder)
        if rewinds and rewinds != self._swept:
            if gone := remove_left(self._remote, rewinds):
                self._folder.incident(
                    {"event": "copies removed", "steps": gone, "reason": "left by a rewind"}
                )
            self._swept = rewinds
        prune(self._remote, step, self._section)

    def announce_end(self) -> None:
        """Tell who follows the run on its store that it is complete. Called once all is
        uploaded."""
        with self._changed:
            self._withdrawing = False
        try:
            self._confirm()
            self._remote.store.replace(DONE, (self._folder.path / DONE).read_bytes())
        except (ADDPError, OSError) as error:
            self._folder.incident({"event": "upload", "error": str(error)})
            self._say(f"the end of the run is not announced on {self._remote.name}: {error}")

    def _say(self, line: str) -> None:
        records.say(f"{self._folder.path.name}: {line}")

    def _late(self, step: int | None, reason: str) -> str:
        if step is None:
            return (
                f"{self._remote.name} may still call the run complete: {reason}. "
                "It is tried again meanwhile"
            )
        return (
            f"the checkpoint of step {step} is not on {self._remote.name} yet: {reason}. It is "
            f"tried again while training goes on; {self._last_good()}"
        )

    def _last_good(self) -> str:
        if self._newest is None:
            return "no copy was made since this start"
        step, saved = self._newest
        return f"the last good copy is of step {step}, of {records.ago(saved)}"

    @property
    def busy(self) -> bool:
        """Whether a checkpoint waits for its copy."""
        return bool(self._wanted)

    def close(self, retry_seconds: float, waiting: Callable[[], None]) -> list[int]:
        """Wait until all is uploaded, at most `retry_seconds`. Returns the steps of which the
        copies are missing.

        waiting: called once a second meanwhile.
        """
        deadline = time.monotonic() + retry_seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (self._wanted or self._withdrawing) and (left := deadline - time.monotonic()) > 0:
                if not self._thread.is_alive():
                    break
                self._changed.wait(min(left, 1.0))
                waiting()
            return list(self._wanted)
