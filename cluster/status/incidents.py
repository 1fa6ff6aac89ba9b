"""The incidents of a run in the last hour. Nothing here raises, and no file is read whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cluster.status import fields
from cluster.status.snapshot import Incident
from cluster.status.source import Source
from data_pipeline.storage import Entry
from model.documents import show
from trainer.run_folder import INCIDENTS, OLD_INCIDENTS, in_time_order, incident_names

_OF_A_RANK = 64 << 10  # bytes
_TOGETHER = 8 << 20
_MOST_INCIDENTS = 100  # that a snapshot lists
_MOST_EVENTS = 20  # kinds of incidents that are counted by themselves
_HOUR = 3600.0


class Incidents(NamedTuple):
    """The incidents of the last hour. listed: the latest of them, the oldest first. by_event: how
    many there were of each kind; those of rare kinds are `other`."""

    listed: list[Incident]
    by_event: dict[str, int]


def recent_incidents(source: Source, now: float, faults: Sequence[Incident]) -> Incidents:
    """Return the incidents of the last hour. Files that have not changed since are not read.

    faults: those of the last hour that the supervisors saw, which are listed among them.
    """
    entries = {entry.name: entry for entry in _incident_files(source)}
    fresh = [name for name in incident_names(entries) if now - entries[name].modified < _HOUR]
    each = min(_OF_A_RANK, _TOGETHER // max(1, len(fresh)))
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
