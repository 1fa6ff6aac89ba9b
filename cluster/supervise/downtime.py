"""What failures cost a run, by its history: how long it took to recover from each, and where the
time of the run went. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from cluster.supervise.history import FINAL, Event, Fault, Progress, Start, Verdict, attempts


class Recovery(NamedTuple):
    """A fault that ended an attempt, and how the run came back.

    noticed: seconds from the last sign of life to the fault. started: from there to the next start.
    stepped: from the fault to the next new step. None where that has not come.
    """

    fault: Fault
    started: float | None
    stepped: float | None

    @property
    def noticed(self) -> float:
        return self.fault.seconds


def recoveries(events: Sequence[Event]) -> list[Recovery]:
    """Return the recovery from each attempt that ended by a fault, in order.

    An attempt counts once, by its first fault. A run that had to be started twice before it made a
    new step has recovered from both faults with that step.
    """
    found, seen = [], set[int]()
    for index, event in enumerate(events):
        if not isinstance(event, Fault) or event.attempt in seen:
            continue
        seen.add(event.attempt)
        later = [e for e in events[index + 1 :] if e.attempt > event.attempt]
        start = next((e for e in later if isinstance(e, Start)), None)
        step = next((e for e in later if isinstance(e, Progress)), None)
        found.append(
            Recovery(
                event,
                None if start is None else start.time - event.time,
                None if step is None else step.time - event.time,
            )
        )
    return found


class Times(NamedTuple):
    """Where the time of a run went, in seconds.

    wall: from each first start to the verdict after it; while a run is stopped, its time stands
    still. trained: time in steps that count. repeated: time in steps that were lost with their
    attempt and made again. Ranks were down or starting for the rest.
    """

    wall: float
    trained: float
    repeated: float

    @property
    def down(self) -> float:
        return max(0.0, self.wall - self.trained - self.repeated)

    @property
    def ratio(self) -> float | None:
        """The effective training time ratio (ETTR); None before the first moment."""
        return self.trained / self.wall if self.wall > 0 else None


def times(events: Sequence[Event], now: float | None = None) -> Times:
    """Return where the time went. now: as seconds since 1970.

    Steps count up to the last checkpoint of their attempt, and all of them in an attempt that
    saved at its end, or that still runs.
    """
    now = time.time() if now is None else now
    made = attempts(events)
    trained = repeated = 0.0
    for index, attempt in enumerate(made):
        if attempt.progress is None:
            continue
        begun = attempt.progress.time
        lost_at = made[index + 1].start.time if index + 1 < len(made) else now
        if attempt.end is not None:
            lost_at = attempt.end.time
        safe = max([begun, *(checkpoint.time for checkpoint in attempt.checkpoints)])
        runs = attempt.end is None and index + 1 == len(made) and not _is_over(events)
        if runs or (attempt.end is not None and attempt.end.code in (0, 75)):
            safe = lost_at
        elif attempt.end is None:
            lost_at = safe  # nobody knows for how long its ranks went on
        trained += max(0.0, safe - begun)
        repeated += max(0.0, lost_at - safe)
    return Times(_wall(events, now), trained, repeated)


def _is_over(events: Sequence[Event]) -> bool:
    begun = [e for e in events if isinstance(e, Start | Verdict)]
    return bool(begun) and isinstance(begun[-1], Verdict)


def _wall(events: Sequence[Event], now: float) -> float:
    """The time from each first start to the final verdict after it, or to now."""
    wall, begun = 0.0, None
    for event in events:
        if isinstance(event, Start) and begun is None:
            begun = event.time
        if isinstance(event, Verdict) and event.verdict in FINAL and begun is not None:
            wall, begun = wall + max(0.0, event.time - begun), None
    return wall if begun is None else wall + max(0.0, now - begun)
