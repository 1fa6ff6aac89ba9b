"""What the supervisors of a run did, by RUN/supervision.jsonl. Nothing here raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cluster.status import fields
from cluster.status.snapshot import Incident, Recovery
from cluster.status.source import Piece, Source
from cluster.status.state import Ended
from cluster.supervise import downtime, history
from trainer.run_folder import SUPERVISION

_HISTORY = 4 << 20  # bytes of its end
_HOUR = 3600.0


class Supervision(NamedTuple):
    """What supervision.jsonl says.

    started: when ranks were last started. acted: when the supervisors last did something, if they
    have not ended since. touched: when they last changed their file, if that is known. started_now:
    whether what they did last was to start ranks. faults: how many there were of each kind. recent:
    those of the last hour.
    """

    starts: int
    started: float
    ranks: int | None
    failures: int
    verdict: Ended | None
    acted: float | None
    touched: float | None
    started_now: bool
    faults: dict[str, int]
    recent: list[Incident]
    recovery: Recovery | None

    def without_verdict_before(self, moment: float) -> Supervision:
        """Return the same without a verdict of before that moment, in seconds since 1970: the run
        was started again since, without supervisors."""
        verdict = self.verdict
        if verdict is None or verdict.time is None or verdict.time >= moment:
            return self
        return self._replace(verdict=None)


def summary(
    events: Sequence[history.Event], newest: int | None, now: float, touched: float | None = None
) -> Supervision | None:
    """Return what a history says; None where there is none. newest: the newest checkpoint. touched:
    when its file was last changed, where that is by the supervisors themselves."""
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
        failures=_failures(events, newest),
        verdict=verdict,
        acted=None if verdict else last.time,
        touched=touched,
        started_now=isinstance(last, history.Start),
        faults=Counter(event.kind for event in events if isinstance(event, history.Fault)),
        recent=[
            _fault(event)
            for event in events
            if isinstance(event, history.Fault) and now - event.time < _HOUR
        ],
        recovery=_recovery(events),
    )


def _failures(events: Sequence[history.Event], newest: int | None) -> int:
    """Return how many attempts have failed since the last one that made progress. One that still
    runs has not: it counts once it has ended."""
    failures = history.failures_without_progress(events, newest)
    runs = failures > 0 and history.attempts(events, newest)[-1].end is None
    return failures - 1 if runs else failures


def _fault(event: history.Fault) -> Incident:
    return Incident(
        time=event.time,
        rank=event.rank,
        event=event.kind,
        details=fields.one_line(
            f"{event.reason}, {event.seconds:.1f} s after the last sign of life", 240
        ),
    )


def _recovery(events: Sequence[history.Event]) -> Recovery | None:
    """Return the recovery from the newest fault that ended an attempt."""
    last = history.last(events, history.Fault)
    if last is None:
        return None
    found = downtime.recoveries([event for event in events if event.attempt >= last.attempt])
    if not found:
        return None
    fault, _, stepped = found[-1]
    return Recovery(
        time=fault.time, kind=fault.kind, noticed=max(0.0, fault.seconds), stepped=stepped
    )


def history_file(source: Source) -> Piece | None:
    """Return supervision.jsonl, without the beginning of a very long one."""
    return source.end(SUPERVISION, _HISTORY)


def events_of(piece: Piece) -> list[history.Event]:
    """Return what the supervisors wrote down."""
    return history.parse(piece.lines.decode(errors="replace"))
