"""The signs of life of a run: heartbeats of its ranks, the lock of its folder or its store. Nothing
here raises."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

from cluster.status import fields
from cluster.status.files import record
from cluster.status.snapshot import Rank
from cluster.status.source import Source
from cluster.status.state import Lock
from cluster.supervise.limits import Limits
from data_pipeline.storage import Entry
from trainer.run_folder import STOP, RunFolder

_MOST_RANKS = 1 << 16
_LEASES = 1.5  # without a renewal in which a holder may still live, as clocks differ
_PARTING = 3.0  # seconds: a machine that only has the same name may have just written the beat
_FACTOR = 10  # of the slowest steps: what a step may take, as the supervisors have it


def folder_lock(folder: RunFolder) -> Lock | None:
    """Return who holds a run folder. While its storage has locks, that is proof of life."""
    try:
        holder = folder.holder()
    except ValueError:  # it is held, and its text is none
        holder = "another process"
    return Lock(fields.one_line(holder, 200), renewed=True) if holder else None


def store_lock(source: Source, lease: float, now: float) -> Lock | None:
    """Return who holds a store: the newest of its claims, which its holder renews."""
    claims = source.files("owner/run.")
    numbered = [c for c in claims if re.fullmatch(r"owner/run\.[0-9]{1,15}", c.name)]
    newest = max(numbered, key=lambda c: int(c.name.rpartition(".")[2]), default=None)
    if newest is None:
        return None
    claim = record(source, newest.name)
    host = fields.text(claim, "host", 64) or "an unknown host"
    process = fields.count(claim, "process")
    renewed = now - newest.modified < _LEASES * lease
    return Lock(f"process {process} on {host}", renewed)


def stop_file(source: Source) -> Entry | None:
    """Return the file that asks the run to stop."""
    return next((entry for entry in source.files(STOP) if entry.name == STOP), None)


class Attempt(NamedTuple):
    """What tells the signs of life of the newest attempt from those of earlier ones.

    ranks: how many it has. started: no rank of it can have beaten before. slowest_step: seconds.
    """

    ranks: int | None = None
    started: float = 0.0
    slowest_step: float = 0.0


def ranks(source: Source, now: float, attempt: Attempt) -> list[Rank]:
    """Return the last sign of life of each rank of the newest attempt."""
    found: list[Rank] = []
    limits = Limits()
    for entry in source.files("heartbeats/rank-"):
        number = re.fullmatch(r"heartbeats/rank-([0-9]{1,9})\.json", entry.name)
        if number is None or len(found) >= _MOST_RANKS:
            continue
        rank = int(number[1])
        if attempt.ranks is not None and rank >= attempt.ranks:
            continue
        beat = record(source, entry.name)
        time = fields.moment(beat)
        if time is not None and time >= attempt.started:
            ahead = max(0.0, time - now)
            # A clock that is ahead would have its rank live for ever: then the file's own time
            # counts, which the storage gave it.
            age = max(0.0, now - (entry.modified if ahead else time))
            shown = _rank(rank, beat, age, limits, attempt.slowest_step)
            found.append(shown.model_copy(update={"ahead": ahead}))
    return sorted(found, key=lambda rank: rank.rank)


def _rank(rank: int, beat: dict[str, Any], age: float, limits: Limits, slowest_step: float) -> Rank:
    section, step = fields.text(beat, "section", 16) or "unknown", fields.count(beat, "step") or 0
    code, host = beat.get("code"), fields.text(beat, "host", 64) or ""
    return Rank(
        rank=rank,
        host=host,
        section=section,
        step=step,
        age=age,
        gone=section != "exit" and age > _PARTING and _is_gone(host, fields.count(beat, "pid")),
        limit=silence_limit(section, limits, slowest_step),
        code=code if isinstance(code, int) and -255 <= code <= 255 else None,
        reason=fields.text(beat, "reason"),
    )


def _is_gone(host: str, pid: int | None) -> bool:
    """Whether a process has ended, by the word of this machine where it ran here."""
    return bool(pid) and host == platform.node() and not Path(f"/proc/{pid}").exists()


def silence_limit(section: str, limits: Limits, slowest_step: float) -> float:
    """Return for how long a rank may be silent in a section, as its supervisor has it by default.

    slowest_step: seconds; 0 before the first metric line, as the first step may take longer.
    """
    if section == "step":
        if not slowest_step:
            return max(limits.limit_first_step, limits.limit_step)
        return max(limits.limit_step, _FACTOR * slowest_step)
    named = limits.model_dump().get(f"limit_{section}")
    return float(named) if named is not None else limits.longest
