"""RUN/supervision.jsonl: what the supervisors of a run did, one event a line.

    start -> progress -> checkpoint ... -> fault -> stacks -> end -> start -> ... -> verdict

Only the coordinator writes it (`journal.py`). It is the memory of the supervisors: attempts and
failures are counted over it, so that nobody who starts supervisors again, by hand or by a
controller, resets the count. Whatever looks at a run from outside reads it, too. Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from model.documents import Count, Positive, Record, read_file
from model.errors import DataError
from trainer import records

EXIT_GAVE_UP = 80  # failures without progress: a person has to look
EXIT_INCOMPLETE = 81  # nodes are missing: start the supervisors again
_LARGEST = 64 << 20  # bytes of supervision.jsonl
_LONGEST_LINE = 8 << 20  # a start names all its nodes

Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Reason = Annotated[str, StringConstraints(max_length=4000)]
FaultKind = Literal[
    "death", "crash", "hang", "lost node", "unfit node", "storage", "stopped", "diverged", "refused"
]
VerdictKind = Literal["done", "stopped", "failed", "gave up", "incomplete"]
FINAL: frozenset[VerdictKind] = frozenset({"done", "stopped", "failed", "gave up"})


class NodeName(Record):
    """A node of an attempt. node: the name that is its own in this run. host: the machine's."""

    node: Name
    host: Name


class _Event(Record):
    """What all events say. time: seconds since 1970. attempt: the number of the start, from 1."""

    time: float = Field(ge=0, le=1e12)
    attempt: Count


class Start(_Event):
    """Ranks are started. checkpoint: the newest committed one, from which they go on."""

    event: Literal["start"] = "start"
    nodes: tuple[NodeName, ...]
    ranks: Positive
    checkpoint: Count | None


class Progress(_Event):
    """The first new step of an attempt is made. seconds: since its start."""

    event: Literal["progress"] = "progress"
    step: Count
    seconds: float


class Checkpoint(_Event):
    """A checkpoint is committed: the work before it is safe."""

    event: Literal["checkpoint"] = "checkpoint"
    step: Count


class Fault(_Event):
    """Something went wrong, and is the reason why an attempt ends or a node is left out.

    death: a signal ended a rank. crash: a rank ended with a code that is none of ours. hang: a rank
    was silent for too long. stopped: somebody stopped a rank behind the supervisors' backs.
    diverged and refused: a rank ended with a code after which no start helps.
    seconds: how long the last sign of life was ago then.
    """

    event: Literal["fault"] = "fault"
    kind: FaultKind
    reason: Reason
    seconds: float = 0.0
    rank: Count | None = None
    node: Name | None = None
    host: Name | None = None
    step: Count | None = None
    section: Name | None = None


class Stacks(_Event):
    """Where all ranks were when one of them hung. file: below the run folder."""

    event: Literal["stacks"] = "stacks"
    file: Name
    summary: Reason


class Joined(_Event):
    """A node came."""

    event: Literal["joined"] = "joined"
    node: Name
    host: Name
    reason: Reason = ""


class Left(_Event):
    """A node went, or is lost."""

    event: Literal["left"] = "left"
    node: Name
    host: Name
    reason: Reason


class End(_Event):
    """All ranks of an attempt have ended.

    code: of the attempt; negative for a signal. step: the last that any rank named. checkpoint: the
    newest committed one. failed: whether the attempt counts as a failure, unless it made progress.
    """

    event: Literal["end"] = "end"
    code: int = Field(ge=-255, le=255)
    step: Count | None
    checkpoint: Count | None
    reason: Reason
    failed: bool


class Verdict(_Event):
    """The supervisors end. `incomplete` asks to be started again; the others are final.

    by_user: a user has stopped the run by RUN/STOP, so that no scheduler is to start it again.
    """

    event: Literal["verdict"] = "verdict"
    verdict: VerdictKind
    code: int = Field(ge=0, le=255)
    reason: Reason
    by_user: bool = False


Event = Start | Progress | Checkpoint | Fault | Stacks | Joined | Left | End | Verdict
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
E = TypeVar("E", bound=_Event)


# The file.


def parse(text: str) -> list[Event]:
    """Return the events of a history. A line that holds none is left out: one that a kill cut
    short, or one of a later version."""
    events = []
    for line in text.split("\n"):
        if not line or len(line) > _LONGEST_LINE:
            continue
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError:
            continue
    return events


def read(path: Path) -> list[Event]:
    """Return the events of a history; none where there is no such file. Raises DataError where it
    cannot be read: nobody may count failures from the beginning then."""
    try:
        content = read_file(path, _LARGEST, DataError)
    except FileNotFoundError:
        return []
    return parse(content.decode(errors="replace"))


def append(path: Path, event: Event) -> None:
    """Add an event. It waits in memory where the file cannot be written, and never raises."""
    records.append(path, (event.model_dump_json(exclude_none=False) + "\n").encode())


def touch(path: Path) -> None:
    """Show that the supervisors live, though they do nothing that would be an event: they may wait
    for a node for a long time. Never raises."""
    with suppress(OSError):
        os.utime(path)


def mend(path: Path) -> None:
    """End a last line that a kill cut short, so that the next event gets a line of its own."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
    except OSError:  # there is no file, or an empty one
        return
    if cut:
        records.append(path, b"\n")


# What a history says.


def last(events: Iterable[Event], kind: type[E]) -> E | None:
    """Return the last event of a kind."""
    found = None
    for event in events:
        if isinstance(event, kind):
            found = event
    return found


def attempts_so_far(events: Iterable[Event]) -> int:
    """Return the number of the last attempt, 0 before the first."""
    return max((event.attempt for event in events), default=0)


class Attempt(NamedTuple):
    """One start and what came of it.

    end: None where the supervisors were killed before they could say, and while the attempt runs.
    reached: the newest checkpoint known after it.
    """

    start: Start
    progress: Progress | None
    checkpoints: tuple[Checkpoint, ...]
    faults: tuple[Fault, ...]
    end: End | None
    reached: int | None

    @property
    def made_progress(self) -> bool:
        """Whether a checkpoint came of it."""
        return _rank_of(self.reached) > _rank_of(self.start.checkpoint)


def _rank_of(checkpoint: int | None) -> int:
    return -1 if checkpoint is None else checkpoint


def attempts(events: Sequence[Event], newest: int | None = None) -> list[Attempt]:
    """Return the attempts of a history, in order.

    newest: the newest committed checkpoint now. The last attempt has reached it, even if it could
    not say so itself.
    """
    starts = [event for event in events if isinstance(event, Start)]
    numbers = {start.attempt for start in starts}
    of: dict[int, list[Event]] = {number: [] for number in numbers}
    for event in events:
        if event.attempt in of:
            of[event.attempt].append(event)
    after = [*(start.checkpoint for start in starts), newest][1:]
    return [
        _attempt(start, of[start.attempt], following)
        for start, following in zip(starts, after, strict=True)
    ]


def _attempt(start: Start, events: Sequence[Event], following: int | None) -> Attempt:
    end = last(events, End)
    checkpoints = tuple(event for event in events if isinstance(event, Checkpoint))
    known = [checkpoint.step for checkpoint in checkpoints]
    # The listing of a shared folder may be late: what was not seen at the end is seen afterwards.
    late = [end.checkpoint if end else None, following]
    known += [step for step in late if step is not None]
    return Attempt(
        start=start,
        progress=last(events, Progress),
        checkpoints=checkpoints,
        faults=tuple(event for event in events if isinstance(event, Fault)),
        end=end,
        reached=max(known, default=None),
    )


def failures_without_progress(events: Sequence[Event], newest: int | None = None) -> int:
    """Return how many attempts have failed since the last one that made progress.

    An attempt without an end was killed together with its supervisors, and is a failure as any
    other; so is one that still runs, to whoever asks meanwhile. Being stopped is none, but takes no
    failure back. After a verdict "gave up" a person has looked at the run, and the count begins
    again. newest: as in `attempts`.
    """
    return len(_streak(events, newest))


def troubled_nodes(events: Sequence[Event], newest: int | None = None) -> dict[str, int]:
    """Return on how many of the latest failures without progress each node was at fault."""
    count: dict[str, int] = {}
    for attempt in _streak(events, newest):
        for node in {fault.node for fault in attempt.faults if fault.node is not None}:
            count[node] = count.get(node, 0) + 1
    return count


def _streak(events: Sequence[Event], newest: int | None) -> list[Attempt]:
    forgiven = -1
    for index, event in enumerate(events):
        if isinstance(event, Verdict) and event.verdict == "gave up":
            forgiven = index
    streak: list[Attempt] = []
    for attempt in attempts(events[forgiven + 1 :], newest):
        if attempt.made_progress:
            streak = []
        elif attempt.end is None or attempt.end.failed:
            streak.append(attempt)
    return streak


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
