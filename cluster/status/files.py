"""The files of a run, one reader for each: what of them a snapshot shows. Nothing here raises, and
no file is read whole that may be large."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.status import fields
from cluster.status.snapshot import Checkpoint, Incident, Rank, Recovery
from cluster.status.source import Piece, Source
from cluster.status.state import Ended, Lock
from cluster.supervise import history
from cluster.supervise.limits import Limits
from data_pipeline.storage import Entry
from model.documents import parse_yaml, show
from model.errors import DataError
from trainer.run_folder import (
    DONE,
    INCIDENTS,
    OLD_INCIDENTS,
    RUN,
    STOP,
    SUPERVISION,
    RunFolder,
    in_time_order,
    incident_names,
    step_folder,
)

_METRICS = 192 << 10  # bytes of its end: some 250 lines
_HISTORY = 4 << 20
_RECORD = 64 << 10  # of a small file
_INCIDENTS_OF_A_RANK = 64 << 10
_INCIDENTS_TOGETHER = 8 << 20
_MOST_INCIDENTS = 100  # that a snapshot lists
_MOST_EVENTS = 20  # kinds of incidents that are counted by themselves
_MOST_RANKS = 1 << 16
_HOUR = 3600.0
_LEASES = 1.5  # without a renewal in which a holder may still live, as clocks differ
_PARTING = 3.0  # seconds: a machine that only has the same name may have just written the beat
_FACTOR = 10  # of the slowest steps: what a step may take, as the supervisors have it


def record(source: Source, name: str) -> dict[str, Any]:
    """Return a small file of JSON; {} where there is none."""
    piece = source.end(name, _RECORD)
    return fields.json_mapping(piece.content) if piece and piece.whole else {}


def is_done(source: Source) -> bool:
    """Whether the run is marked as complete."""
    return fields.count(record(source, DONE), "step") is not None


def identity(source: Source) -> str | None:
    """Return the id of the run."""
    return fields.text(record(source, RUN), "run", 64)


def metric_rows(source: Source) -> list[dict[str, Any]]:
    """Return the latest metric lines, oldest first."""
    piece = source.end("metrics.jsonl", _METRICS)
    rows = fields.json_rows(piece.lines) if piece else ()
    return [row for row in rows if fields.count(row, "step") is not None]


class Settings(NamedTuple):
    """What a run's configuration and environment say that matters here."""

    upload: str | None
    lease: float
    total: int | None
    ranks: int | None


def configuration(config: Piece) -> dict[str, Any]:
    """Return the mapping of config.resolved.yaml; {} where it holds none."""
    try:
        tree = parse_yaml(config.content if config.whole else b"", "", DataError)
    except DataError:
        return {}
    return tree if isinstance(tree, dict) else {}


def settings(tree: dict[str, Any] | None, environment: dict[str, Any]) -> Settings:
    """Return them. tree: the configuration."""
    checkpoint, schedule = _section(tree, "checkpoint"), _section(tree, "schedule")
    total = fields.count(environment, "total_steps")
    if total is None and schedule.get("unit") == "steps":  # earlier versions did not write it
        steps = fields.number(schedule, "total", 0)
        total = None if steps is None else max(1, round(steps))
    return Settings(
        upload=fields.text(checkpoint, "upload", 4096),
        lease=fields.number(checkpoint, "lease", 0) or 60.0,
        total=total or None,
        ranks=fields.count(environment, "world_size") or None,
    )


def _section(tree: dict[str, Any] | None, name: str) -> dict[str, Any]:
    section = tree.get(name) if tree else None
    return section if isinstance(section, dict) else {}


def exit_record(source: Source) -> Ended | None:
    """Return how the last attempt ended; None where it runs, or was killed."""
    found = record(source, "exit.json")
    code = found.get("code")
    if isinstance(code, bool) or not isinstance(code, int) or not -255 <= code <= 255:
        return None
    return Ended(code, fields.text(found, "reason") or "it left no reason", fields.moment(found))


# Signs of life.


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


# What the supervisors did.


class Supervision(NamedTuple):
    """What supervision.jsonl says.

    started: when ranks were last started. acted: when the supervisors last did something, if they
    have not ended since. started_now: whether that was to start ranks. faults: how many there were
    of each kind. recent: those of the last hour.
    """

    starts: int
    started: float
    ranks: int | None
    failures: int
    verdict: Ended | None
    acted: float | None
    started_now: bool
    faults: dict[str, int]
    recent: list[Incident]
    recovery: Recovery | None


def supervision(
    events: Sequence[history.Event], newest: int | None, now: float
) -> Supervision | None:
    """Return what a history says; None where there is none. newest: the newest checkpoint."""
    if not events:
        return None
    last, start = events[-1], history.last(events, history.Start)
    verdict = None
    if isinstance(last, history.Verdict):
        verdict = Ended(last.code, fields.one_line(last.reason), last.time, last.verdict)
    return Supervision(
        starts=sum(isinstance(event, history.Start) for event in events),
        started=start.time if start else 0.0,
        ranks=start.ranks if start else None,
        failures=history.failures_without_progress(events, newest),
        verdict=verdict,
        acted=None if verdict else last.time,
        started_now=isinstance(last, history.Start),
        faults=Counter(event.kind for event in events if isinstance(event, history.Fault)),
        recent=[
            _fault(event)
            for event in events
            if isinstance(event, history.Fault) and now - event.time < _HOUR
        ],
        recovery=_recovery(events),
    )


def _fault(event: history.Fault) -> Incident:
    return Incident(
        time=event.time,
        rank=event.rank,
        event=event.kind,
        details=fields.one_line(f"{event.reason}, noticed after {event.seconds:.1f} s", 240),
    )


def _recovery(events: Sequence[history.Event]) -> Recovery | None:
    """Return the recovery from the newest fault that ended an attempt."""
    last = history.last(events, history.Fault)
    if last is None:
        return None
    found = history.recoveries([event for event in events if event.attempt >= last.attempt])
    if not found:
        return None
    fault, _, stepped = found[-1]
    return Recovery(
        time=fault.time, kind=fault.kind, noticed=max(0.0, fault.seconds), stepped=stepped
    )


def supervision_file(source: Source) -> Piece | None:
    """Return supervision.jsonl, without the beginning of a very long one."""
    return source.end(SUPERVISION, _HISTORY)


def supervision_events(piece: Piece) -> list[history.Event]:
    """Return what the supervisors wrote down."""
    return history.parse(piece.lines.decode(errors="replace"))


# Checkpoints.


def newest_checkpoint(source: Source, now: float) -> Checkpoint | None:
    """Return the newest committed checkpoint. Its files are not verified."""
    names = (re.fullmatch(r"step-([0-9]{8,15})", name) for name in source.folders("checkpoints"))
    for step in sorted((int(name[1]) for name in names if name), reverse=True):
        manifest = f"checkpoints/{step_folder(step)}/manifest.json"
        entry = next((e for e in source.files(manifest) if e.name == manifest), None)
        if entry is not None:
            saved = entry.modified
            return Checkpoint(step=step, saved=saved, age=max(0.0, now - saved))
    return None


# Incidents.


class Incidents(NamedTuple):
    """The incidents of the last hour. listed: the latest of them, the oldest first. by_event: how
    many there were of each kind; those of rare kinds are `other`."""

    listed: list[Incident]
    by_event: dict[str, int]


def incidents(source: Source, now: float, faults: Sequence[Incident]) -> Incidents:
    """Return the incidents of the last hour. Files that have not changed since are not read.

    faults: those of the last hour that the supervisors saw, which are listed among them.
    """
    entries = {entry.name: entry for entry in _incident_files(source)}
    fresh = [name for name in incident_names(entries) if now - entries[name].modified < _HOUR]
    each = min(_INCIDENTS_OF_A_RANK, _INCIDENTS_TOGETHER // max(1, len(fresh)))
    pieces = (source.end(name, max(each, 4096)) for name in fresh)
    rows = (row for piece in pieces if piece for row in fields.json_rows(piece.lines))
    found = in_time_order(row for row in rows if _within(row, now) is not None)
    events = Counter(_event(row) for row in found)
    events.update(fault.event for fault in faults)
    named = dict(events.most_common(_MOST_EVENTS))
    if other := events.total() - sum(named.values()):
        named["other"] = named.get("other", 0) + other
    listed = [*(_incident(row) for row in found[-_MOST_INCIDENTS:]), *faults[-_MOST_INCIDENTS:]]
    listed.sort(key=lambda incident: incident.time)
    return Incidents(listed[-_MOST_INCIDENTS:], named)


def _event(row: dict[str, Any]) -> str:
    return fields.text(row, "event", 40) or "unknown"


def _incident_files(source: Source) -> Iterable[Entry]:
    return [*source.files(f"{INCIDENTS}/"), *source.files(OLD_INCIDENTS)]


def _within(row: dict[str, Any], now: float) -> float | None:
    when = fields.moment(row)
    return when if when is not None and now - when < _HOUR else None


def _incident(row: dict[str, Any]) -> Incident:
    others = {k: v for k, v in row.items() if k not in ("time", "rank", "event")}
    told = ", ".join(
        f"{fields.one_line(str(key), 32)} {_shown(value)}"
        for key, value in list(others.items())[:8]
    )
    return Incident(
        time=fields.moment(row) or 0.0,
        rank=fields.count(row, "rank"),
        event=_event(row),
        details=fields.one_line(told, 240),
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return fields.one_line(value, 160) if isinstance(value, str) else show(value)
