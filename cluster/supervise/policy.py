"""What to do after a start has ended, or before the first: start, wait, or finish.

Pure functions of what is known. They look at no clock, no file and no process, so that each answer
can be tested, and explained from the history of the run.

    judge    how the ranks ended          -> Outcome: the one code and reason of the attempt
    decide   rules, history, situation    -> Start | Wait | Finish
    grows    may more nodes take part?    -> whether to stop at this checkpoint, and start with more
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from cluster.supervise import history
from cluster.supervise.history import EXIT_GAVE_UP, EXIT_INCOMPLETE, FaultKind, VerdictKind
from model.documents import Settings
from trainer.run_folder import (
    EXIT_CONFIG,
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_HANG,
    EXIT_NO_VALID_CHECKPOINT,
    EXIT_PREEMPTED,
    EXIT_STORAGE,
    LOST_RANK,
    OWN_CODES,
)

# No start helps after these, which come first where ranks end with different codes.
FINAL_CODES = (EXIT_CONFIG, EXIT_NO_VALID_CHECKPOINT, EXIT_DIVERGED)
_BACKOFF = 10.0  # seconds before a start after the first failure of storage; doubled each time
_LONGEST_BACKOFF = 120.0
_PATIENCE = 4  # storage comes back: so many times as many failures of it are put up with
_SUSPECT = 2  # failures without progress after which a node is taken last

Seconds = Annotated[float, Field(ge=0, le=7 * 86_400)]


class Rules(Settings):
    """The options of a supervisor that its policy follows."""

    nodes: int = Field(1, ge=1, le=16_384, description="nodes that train")
    ranks: int = Field(1, ge=1, le=256, description="ranks on each node")
    min_nodes: int | None = Field(
        None, ge=1, description="train with as few nodes as this where others are lost (all nodes)"
    )
    spares: int = Field(0, ge=0, description="nodes beyond --nodes, which wait until one is needed")
    worlds: tuple[int, ...] = Field(
        (), description="numbers of ranks that the batch can be divided over (any)"
    )
    max_restarts: int = Field(
        3, ge=1, le=1000, description="give up after so many failures without progress"
    )
    rejoin: Seconds = Field(
        120, description="seconds to wait for nodes that are missing, or for the coordinator"
    )
    grow: Seconds = Field(
        600, description="seconds that fewer nodes train at least before a node that came joins"
    )

    @model_validator(mode="after")
    def _fits(self) -> Rules:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes = {self.min_nodes} is more than nodes = {self.nodes}")
        if self.worlds and self.nodes * self.ranks not in self.worlds:
            raise ValueError(
                f"{self.nodes} nodes with {self.ranks} ranks each are {self.nodes * self.ranks} "
                f"ranks, which is none of worlds = {', '.join(map(str, self.worlds))}"
            )
        return self

    @property
    def fewest(self) -> int:
        """The smallest number of nodes that may train."""
        return self.nodes if self.min_nodes is None else self.min_nodes

    def chances(self, code: int) -> int:
        """Return after how many failures with an exit code like this one the run is given up."""
        return self.max_restarts * (_PATIENCE if code == EXIT_STORAGE else 1)

    def most(self, available: int) -> int:
        """Return the largest number of nodes that may train out of so many; 0 if there is none."""
        for number in range(min(self.nodes, available), self.fewest - 1, -1):
            if not self.worlds or number * self.ranks in self.worlds:
                return number
        return 0


# How an attempt ended.


class RankEnd(NamedTuple):
    """How a rank ended, of its own accord or by somebody else; those that we killed are left out.

    code: negative for a signal. step, section: of its last sign of life. words: its last ones.
    seconds: from its last sign of life until its end was noticed.
    """

    rank: int
    node: str
    host: str
    code: int
    step: int | None = None
    section: str | None = None
    words: str = ""
    seconds: float = 0.0


class Trouble(NamedTuple):
    """What went wrong, as a fault of the history says it, without its time."""

    kind: FaultKind
    reason: str
    seconds: float = 0.0
    rank: int | None = None
    node: str | None = None
    host: str | None = None
    step: int | None = None
    section: str | None = None


class Outcome(NamedTuple):
    """How an attempt ended. failed: whether it counts as a failure, unless it made progress."""

    code: int
    reason: str
    failed: bool
    trouble: Trouble | None = None


def judge(
    ends: Sequence[RankEnd], *, noticed: Trouble | None, asked: str | None, done: bool
) -> Outcome:
    """Return how an attempt ended, from all of its ranks that ended by themselves.

    ends: in the order in which they were noticed. noticed: what is no end of a rank, and the reason
    why the attempt was ended: a hang, a lost node. asked: why the ranks were asked to stop, if they
    were. done: whether the run folder says that the run is complete.
    """
    first_rank = next((end for end in ends if end.rank == 0), None)
    if done and first_rank is not None and first_rank.code == EXIT_DONE:
        return Outcome(EXIT_DONE, "the run is complete", failed=False)
    for code in FINAL_CODES:
        for end in ends:
            if end.code == code:
                kind: FaultKind = "diverged" if code == EXIT_DIVERGED else "refused"
                return Outcome(code, _said(end), False, _trouble(kind, end, _said(end)))
    if asked is not None:
        saved = first_rank is not None and first_rank.code == EXIT_PREEMPTED
        how = "" if saved else "; the ranks did not save before they ended"
        return Outcome(EXIT_PREEMPTED if saved else -signal.SIGKILL, asked + how, failed=False)
    if noticed is not None:
        code = EXIT_HANG if noticed.kind == "hang" else -signal.SIGKILL
        return Outcome(code, noticed.reason, True, noticed)
    return _worst(ends)


def _worst(ends: Sequence[RankEnd]) -> Outcome:
    """The outcome of ranks of which some ended as they should not."""
    own = [end for end in ends if not end.words.startswith(LOST_RANK)]
    for end in own:
        if end.code < 0:
            reason = f"{_who(end)} was killed by {signal_name(-end.code)}{_at(end)}"
            return Outcome(end.code, reason, True, _trouble("death", end, reason))
        if end.code != EXIT_DONE and end.code not in OWN_CODES:
            return _crash(end)
    kinds: tuple[tuple[int, FaultKind], ...] = (
        (EXIT_STORAGE, "storage"),
        (EXIT_HANG, "hang"),
        (EXIT_PREEMPTED, "stopped"),
    )
    for code, kind in kinds:
        for end in own:
            if end.code == code:
                return Outcome(code, _said(end), True, _trouble(kind, end, _said(end)))
    for end in ends:
        if end.code != EXIT_DONE:
            return _crash(end)
    reason = "all ranks ended with 0, but the run folder does not say that the run is complete"
    return Outcome(1, reason, True, Trouble("crash", reason))


def _crash(end: RankEnd) -> Outcome:
    reason = f"{_who(end)} crashed with exit code {end.code}{_at(end)}"
    if end.words:
        reason += f": {end.words}"
    return Outcome(end.code, reason, True, _trouble("crash", end, reason))


def _said(end: RankEnd) -> str:
    return end.words or f"{_who(end)} ended with exit code {end.code}{_at(end)}"


def _who(end: RankEnd) -> str:
    return f"rank {end.rank} on {end.node}"


def _at(end: RankEnd) -> str:
    return "" if end.section is None else f" at step {end.step}"


def _trouble(kind: FaultKind, end: RankEnd, reason: str) -> Trouble:
    where = (end.rank, end.node, end.host, end.step, end.section)
    return Trouble(kind, reason, end.seconds, *where)


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# What to do next.


class Node(NamedTuple):
    """A node that may train: it is there, fit, and does not go away."""

    number: int
    name: str


class Start(NamedTuple):
    """Start all ranks on these nodes, in this order. why: what is unusual about it."""

    nodes: tuple[Node, ...]
    world: int


class Wait(NamedTuple):
    """Look again after so many seconds at most, or when something has changed."""

    seconds: float
    why: str


class Finish(NamedTuple):
    """End all supervisors with this code."""

    verdict: VerdictKind
    code: int
    reason: str


Decision = Start | Wait | Finish


class Situation(NamedTuple):
    """What is known between two attempts.

    nodes: those that may train now. unsure: how many more are there, of which it will be known
    within seconds. waited: seconds since the last attempt ended, or since the supervisors came.
    outcome: of the last attempt under this coordinator. stop: why the whole run is to stop.
    sent_away: whether a node went because somebody told it to. given_up: why the run was given up
    before, and nobody has said yet to try again. newest: the newest committed checkpoint.
    """

    nodes: tuple[Node, ...]
    unsure: int = 0
    waited: float = 0.0
    outcome: Outcome | None = None
    stop: str | None = None
    sent_away: bool = False
    given_up: str | None = None
    newest: int | None = None


def decide(rules: Rules, events: Sequence[history.Event], now: Situation) -> Decision:
    """Return what to do between two attempts."""
    outcome = now.outcome
    if outcome is not None and outcome.code == EXIT_DONE:
        return Finish("done", EXIT_DONE, outcome.reason)
    if outcome is not None and outcome.code in FINAL_CODES:
        return Finish("failed", outcome.code, outcome.reason)
    if now.stop is not None:
        return Finish("stopped", EXIT_PREEMPTED, now.stop)
    if now.given_up is not None:
        return Finish("gave up", EXIT_GAVE_UP, now.given_up)
    failures = history.failures_without_progress(events, now.newest)
    storage = min(failures, storage_failures(events, now.newest))
    if failures - storage >= rules.max_restarts or storage >= rules.chances(EXIT_STORAGE):
        why = outcome.reason if outcome is not None else "the supervisors were killed as well"
        return Finish(
            "gave up",
            EXIT_GAVE_UP,
            f"{failures} failures without a new checkpoint; the last one: {why}",
        )
    left = backoff(events, now.newest) - now.waited
    if outcome is not None and outcome.code == EXIT_STORAGE and left > 0:
        return Wait(left, "the storage gets time to recover")
    return _choose(rules, events, now)


def _choose(rules: Rules, events: Sequence[history.Event], now: Situation) -> Decision:
    """Start with as many nodes as there are, or wait for more."""
    number, hoped = rules.most(len(now.nodes)), rules.most(len(now.nodes) + now.unsure)
    there = f"{len(now.nodes)} of {rules.nodes} nodes are there"
    if number < hoped:
        return Wait(1.0, there)
    patience = rules.rejoin - now.waited
    first = now.outcome is None  # supervisors that have just come: others may still be on their way
    if patience > 0 and (not number or (first and number < rules.nodes)):
        return Wait(patience, there)
    if number:
        return Start(_best(number, now.nodes, events, now.newest), number * rules.ranks)
    missing = f"{there}, and at least {rules.fewest} have to be"
    if now.sent_away:  # a drained node: the run goes on once there is another
        return Finish("incomplete", EXIT_PREEMPTED, f"{missing}; the others were told to go away")
    return Finish("incomplete", EXIT_INCOMPLETE, missing)


def _best(
    number: int, nodes: Sequence[Node], events: Sequence[history.Event], newest: int | None
) -> tuple[Node, ...]:
    """The first nodes; those that were at fault again and again come last."""
    troubled = history.troubled_nodes(events, newest)
    order = sorted(nodes, key=lambda node: (troubled.get(node.name, 0) >= _SUSPECT, node.number))
    return tuple(sorted(order[:number]))


def backoff(events: Sequence[history.Event], newest: int | None = None) -> float:
    """Return for how many seconds storage is left alone after the last attempt: 0 unless storage
    was its fault, else 10 s, doubled for each such failure in a row without progress."""
    streak = storage_failures(events, newest)
    return min(_BACKOFF * 2 ** min(streak - 1, 10), _LONGEST_BACKOFF) if streak else 0.0


def storage_failures(events: Sequence[history.Event], newest: int | None = None) -> int:
    """Return how many of the latest attempts in a row had storage as their fault, since the last
    one that made progress."""
    streak = 0
    for attempt in history.attempts(events, newest):
        if attempt.made_progress or attempt.end is None or attempt.end.code != EXIT_STORAGE:
            streak = 0
        if attempt.end is not None and attempt.end.code == EXIT_STORAGE:
            streak += 1
    return streak


def grows(rules: Rules, *, running: int, available: int, age: float, committed: bool) -> bool:
    """Return whether the ranks are to stop, so that more nodes can take part.

    running: nodes that train. available: they and the others that may. age: of the attempt, in
    seconds. committed: whether a checkpoint of this attempt was committed just now.
    """
    return committed and age >= rules.grow and rules.most(available) > running
