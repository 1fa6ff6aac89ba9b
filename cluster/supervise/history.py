"""RUN/supervision.jsonl: what the supervisors of a run did, one event a line.

    start -> progress -> checkpoint ... -> fault -> stacks -> end -> start -> ... -> verdict

Only the coordinator writes it (`journal.py`). It is the memory of the supervisors: attempts and
failures are counted over it, so that nobody who starts supervisors again, by hand or by a
controller, resets the count. Whatever looks at a run from outside reads it, too. Imports no torch.
"""

from __future__ import annotations

import os
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
