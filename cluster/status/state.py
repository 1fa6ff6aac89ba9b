"""In which state a run is, judged from what it left behind. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.status.snapshot import Rank, State
from trainer.run_folder import EXIT_DONE, EXIT_PREEMPTED

# Seconds in which a supervisor starts the next attempt: the longest pause between two is 120. A
# store does not say when the last one ended, and most runs that let go of its lock have stopped.
_ACTS, _ACTS_ON_STORE = 600.0, 180.0
# Seconds without a sign of life of a supervisor that waits; they come once a minute.
_LIVES = 180.0
_STARTING = ("setup", "restore")
_NAMED = 4  # ranks that a reason lists
_VERDICTS: dict[str, State] = {
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "gave up": "gave up",
    "incomplete": "incomplete",
}


class Ended(NamedTuple):
    """How an attempt ended, or all of them did. time: None where the record does not say."""

    code: int | None
    reason: str
    time: float | None
    verdict: str | None = None


class Lock(NamedTuple):
    """Who holds a run. renewed: whether that is a sign of life."""

    holder: str
    renewed: bool


class Evidence(NamedTuple):
    """What is known of a run. now: the time, as all times in seconds since 1970.

    done: whether it is marked as complete. exit: the record of the last attempt's end. verdict: the
    supervisors', where it is their last word. supervised: when they last did something else than to
    end; None without them. touched: when they last gave a sign of life, where that is known.
    started_now: whether the last thing they did was to start ranks. lock: of the folder or the
    store. ranks: their signs of life. begun: whether anything of a run is there.
    """

    now: float
    done: bool = False
    exit: Ended | None = None
    verdict: Ended | None = None
    supervised: float | None = None
    touched: float | None = None
    started_now: bool = False
    lock: Lock | None = None
    ranks: Sequence[Rank] = ()
    stop_requested: bool = False
    begun: bool = False
    from_store: bool = False


class Judgement(NamedTuple):
    """A state, and why the run is taken to be in it. since: when what goes on no more ended."""

    state: State
    reason: str
    since: float | None = None
    code: int | None = None


def judge(seen: Evidence) -> Judgement:
    """Return the state of a run.

    Signs of life come first: whatever an earlier attempt left behind, a run that lives is running.
    """
    living = [rank for rank in seen.ranks if rank.lives]
    fresh = [rank for rank in living if not rank.silent]
    held = seen.lock is not None and seen.lock.renewed
    if seen.done and not held:
        return Judgement("done", "the run is complete", _time(seen.exit), EXIT_DONE)
    if held or fresh:
        return _alive(seen, living, seen.lock.holder if seen.lock else "nobody")
    if seen.verdict is not None:
        verdict = seen.verdict
        state = _VERDICTS.get(verdict.verdict or "", "failed")
        return Judgement(state, verdict.reason, verdict.time, verdict.code)
    if _is_supervised(seen):
        if seen.started_now:
            return Judgement("starting", "the supervisor has started the ranks")
        how = f": {seen.exit.reason}" if seen.exit else ""
        return Judgement("restarting", f"the supervisor waits, or starts the ranks{how}")
    if seen.exit is not None and not living:
        return _ended(seen.exit)
    return _lifeless(seen, living)


def _is_supervised(seen: Evidence) -> bool:
    """Whether supervisors see to it that the run goes on."""
    if seen.supervised is None:
        return False
    # A time far ahead is that of a clock that is wrong, and no sign of life.
    waits = seen.touched is not None and abs(seen.now - seen.touched) < _LIVES
    acts = _ACTS_ON_STORE if seen.from_store else _ACTS
    return waits or seen.now - seen.supervised < acts


def _alive(seen: Evidence, living: Sequence[Rank], holder: str) -> Judgement:
    late = sorted((rank for rank in living if rank.silent), key=lambda rank: -rank.age)
    if late:
        more = f", and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
        return Judgement("hung", "; ".join(_silence(rank) for rank in late[:_NAMED]) + more)
    if seen.stop_requested:
        return Judgement("stopping", "STOP is there; the ranks save at the next border of a step")
    if seen.from_store:
        return Judgement("running", f"the lock on the store is renewed by {holder}")
    if seen.ranks and not living:
        return Judgement("stopping", "the ranks have said their last word, and end")
    if living and all(rank.section in _STARTING for rank in living):
        return Judgement("starting", f"the ranks are in {_sections(living)}")
    if not living:
        return Judgement("starting", f"held by {holder}; no rank has given a sign of life yet")
    return Judgement("running", f"{len(living)} ranks give signs of life")


def _ended(end: Ended) -> Judgement:
    if end.code == EXIT_DONE:
        return Judgement("done", end.reason, end.time, end.code)
    state: State = "stopped" if end.code == EXIT_PREEMPTED else "failed"
    return Judgement(state, end.reason, end.time, end.code)


def _lifeless(seen: Evidence, living: Sequence[Rank]) -> Judgement:
    """Judge a run of which nothing lives, and which left no word of its end."""
    if living:
        newest = min(living, key=lambda rank: rank.age)
        reason = (
            f"no sign of life of any of {len(living)} ranks: {_silence(newest)}, the others longer"
            if len(living) > 1
            else f"no sign of life: {_silence(newest)}"
        )
        return Judgement("dead", reason, seen.now - newest.age)
    if seen.from_store and seen.lock is not None:
        return Judgement("dead", f"{seen.lock.holder} does not renew its lock on the store")
    if seen.from_store and seen.begun:
        return Judgement("stopped", "nobody holds the lock on the store; it does not say how the "
                         "run ended")  # fmt: skip
    if seen.ranks:  # each has said its last word, and rank 0 could not write exit.json
        last = min(seen.ranks, key=lambda rank: (rank.code in (None, 0, 1), rank.rank))
        return _ended(Ended(last.code, last.reason or "", seen.now - last.age))
    if seen.begun:
        return Judgement("dead", "there are records of a run, and no sign of life")
    return Judgement("new", "no run has started here yet")


def _silence(rank: Rank) -> str:
    host = f" on {rank.host}" if rank.host else ""
    what = "ended without a word" if rank.gone else f"silent for {rank.age:.0f} s"
    return f"rank {rank.rank}{host} {what} in {rank.section} at step {rank.step}"


def _sections(ranks: Sequence[Rank]) -> str:
    return " and ".join(sorted({rank.section for rank in ranks}))


def _time(end: Ended | None) -> float | None:
    return end.time if end else None
