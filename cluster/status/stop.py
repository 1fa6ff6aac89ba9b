"""Asks a run to save and stop, from anywhere that sees its folder or its store, and waits for its
end. The run looks for a file, or an object, of the name STOP."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from cluster.status.read import RunReader
from cluster.status.snapshot import ENDED, Snapshot
from data_pipeline.storage import Store, open_store
from data_pipeline.storage.base import local_error
from model.entry import EXIT_CRASH
from trainer.run_folder import EXIT_DONE, EXIT_PREEMPTED, STOP

Answer = Literal["asked", "asked before", "for the next start", "not running"]
_PAUSE, _STORE_PAUSE = 1.0, 5.0  # seconds between two looks
# A run that seems to have ended is looked at again: its supervisors may be about to start it.
_LOOKS = 2


def ask(reader: RunReader) -> tuple[Answer, Snapshot]:
    """Ask a run to save and stop. Returns what came of it, and how the run was.

    A run that does not run is not asked: a STOP would stop the next start at once. But where a
    launcher may be about to start it again by itself, the STOP is for that start. Raises
    StorageError.
    """
    before = reader.read()
    if may_come_back(before):
        _create(reader)
        return "for the next start", before
    if has_ended(before):
        return "not running", before
    asked: Answer = "asked" if _create(reader) else "asked before"
    after = reader.read()
    ended = has_ended(after) and not may_come_back(after)
    return ("not running", after) if ended else (asked, before)


def may_come_back(snapshot: Snapshot) -> bool:
    """Whether nothing of the run goes on, and its launcher may start it again all the same: its
    supervisors were not complete, or are gone without a verdict."""
    supervised = snapshot.failures_without_progress is not None
    return snapshot.state == "incomplete" or (snapshot.state == "dead" and supervised)


def has_ended(snapshot: Snapshot) -> bool:
    """Whether nothing of the run goes on."""
    return snapshot.state in ENDED


def wait(reader: RunReader, pause: float | None = None) -> Iterator[Snapshot]:
    """Yield the run as it is, again and again, until it has ended. pause: seconds between two
    looks."""
    looks = 0
    while True:
        snapshot = reader.read()
        looks = looks + 1 if has_ended(snapshot) else 0
        yield snapshot
        if snapshot.state == "done" or looks >= _LOOKS:
            return
        time.sleep(pause or (_PAUSE if reader.folder else _STORE_PAUSE))


def take_back(reader: RunReader) -> bool:
    """Remove a STOP that nobody has taken. Returns whether there was one. Raises StorageError."""
    if reader.folder is None:
        store = open_store(reader.run)
        there = any(entry.name == STOP for entry in store.list(STOP))
        store.remove(STOP)
        return there
    try:
        reader.folder.stop.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise local_error(error, str(reader.folder.stop)) from error
    return True


def exit_code(snapshot: Snapshot) -> int:
    """Return the exit code of a run that has ended.

    A store does not say how a run ended: one that let go of its lock was stopped. A run that died
    without a word has that of a crash.
    """
    if snapshot.code is not None:
        return snapshot.code & 0xFF
    return {"done": EXIT_DONE, "stopped": EXIT_PREEMPTED}.get(snapshot.state, EXIT_CRASH)


def progress_line(snapshot: Snapshot, seconds: float) -> str:
    """Return what a run that is asked to stop does now, in one line."""
    sections = Counter(rank.section for rank in snapshot.ranks)
    ranks = ", ".join(f"{number} in {section}" for section, number in sections.most_common(4))
    at = f" at step {snapshot.step:,}" if snapshot.step is not None else ""
    doing = f"; ranks: {ranks}" if ranks else ""
    return f"{seconds:.0f} s: {snapshot.state}{at}{doing}"


def _create(reader: RunReader) -> bool:
    """Make STOP. Returns False where it is there already."""
    content = f"addp stop on {platform.node()} at {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()
    if reader.folder is None:
        store: Store = open_store(reader.run)
        return store.create(STOP, content)
    path = reader.folder.stop
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise local_error(error, str(path)) from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True
