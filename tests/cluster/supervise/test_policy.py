"""The policy, for every situation that can be thought of."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.supervise import policy
from cluster.supervise.history import Event, failures_without_progress
from cluster.supervise.policy import (
    FINAL_CODES,
    Finish,
    Node,
    Outcome,
    RankEnd,
    Rules,
    Situation,
    Start,
    Trouble,
    Wait,
    decide,
    judge,
    storage_failures,
)
from tests.cluster.supervise import events as made
from trainer.run_folder import LOST_RANK, OWN_CODES

CODES = st.sampled_from([0, 1, 2, 70, 134, *OWN_CODES, -6, -9, -11, -15, -64])


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    nodes, ranks = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    more = draw(st.sets(st.sampled_from([n * ranks for n in range(1, 9)]), max_size=4))
    return Rules(
        nodes=nodes,
        ranks=ranks,
        min_nodes=draw(st.none() | st.integers(1, nodes)),
        worlds=tuple(sorted(more | {nodes * ranks})) if draw(st.booleans()) else (),
        max_restarts=draw(st.integers(1, 4)),
        rejoin=draw(st.sampled_from([0.0, 60.0])),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Attempts that fail, save, make progress, or are killed with their supervisors."""
    events: list[Event] = []
    checkpoint = None
    for attempt in range(1, draw(st.integers(0, 6)) + 1):
        events.append(made.start(attempt, attempt * 100.0, checkpoint))
        if draw(st.booleans()):
            events.append(made.fault(attempt, attempt * 100.0 + 1, draw(st.sampled_from("abc"))))
        if draw(st.booleans()):
            checkpoint = (checkpoint or 0) + 4
        if draw(st.integers(0, 3)):
            code = draw(CODES)
            failed = code not in (0, 75, *FINAL_CODES)
            events.append(made.end(attempt, attempt * 100.0 + 2, code, checkpoint, failed))
    return events


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    indices = draw(st.sets(st.integers(0, 9), max_size=9))
    code = draw(st.none() | CODES)
    return Situation(
        nodes=tuple(Node(index, "abc"[index % 3]) for index in sorted(indices)),
        unsure=draw(st.integers(0, 2)),
        waited=draw(st.sampled_from([0.0, 5.0, 59.0, 60.0, 1e4])),
        outcome=None if code is None else Outcome(code, "as it was", code not in (0, 75)),
        stop=draw(st.none() | st.just("STOP")),
        sent_away=draw(st.booleans()),
        newest=draw(st.none() | st.integers(0, 40)),
    )


@settings(max_examples=400)
@given(rules(), histories(), situations())
def test_every_answer_is_allowed(rules: Rules, events: list[Event], now: Situation) -> None:
    answer = decide(rules, events, now)
    code = None if now.outcome is None else now.outcome.code
    failures = failures_without_progress(events, now.newest)
    tries = failures - min(failures, storage_failures(events, now.newest))
    if isinstance(answer, Start):
        assert code not in (0, *FINAL_CODES) and now.stop is None
        assert tries < rules.max_restarts
        assert rules.fewest <= len(answer.nodes) <= rules.nodes
        assert len(set(answer.nodes)) == len(answer.nodes) and set(answer.nodes) <= set(now.nodes)
        assert list(answer.nodes) == sorted(answer.nodes)
        assert answer.world == len(answer.nodes) * rules.ranks
        assert not rules.worlds or answer.world in rules.worlds
        larger = range(len(answer.nodes) + 1, min(rules.nodes, len(now.nodes)) + 1)
        assert all(rules.worlds and n * rules.ranks not in rules.worlds for n in larger)
    elif isinstance(answer, Wait):
        assert 0 < answer.seconds <= max(rules.rejoin, 120.0) and answer.why
        assert code not in (0, *FINAL_CODES) and now.stop is None
        assert tries < rules.max_restarts
    else:
        assert answer.reason
        assert (answer.verdict == "done") == (code == 0)
        assert (answer.verdict == "failed") == (code in FINAL_CODES)
        incomplete = 75 if now.sent_away else 81
        expected = {"done": 0, "stopped": 75, "gave up": 80, "incomplete": incomplete}
        assert answer.code == expected.get(answer.verdict, code)
        assert (answer.verdict == "stopped") <= (now.stop is not None)
        if answer.verdict == "gave up":
            assert failures >= rules.max_restarts
        if answer.verdict == "incomplete":
            assert not rules.most(len(now.nodes)) and now.waited >= rules.rejoin


@given(rules(), histories(), situations())
def test_waiting_ends(rules: Rules, events: list[Event], now: Situation) -> None:
    """Whoever waits for as long as it was told to, with nothing new, and nothing unsure, gets
    another answer."""
    now = now._replace(unsure=0)
    for _ in range(3):
        answer = decide(rules, events, now)
        if not isinstance(answer, Wait):
            return
        now = now._replace(waited=now.waited + answer.seconds)
    pytest.fail("it would wait for ever")


@given(rules(), st.integers(1, 6), st.sampled_from([1, -9, 74, 75, 76]))
def test_failures_without_progress_end(rules: Rules, steps: int, code: int) -> None:
    """Whatever fails, the run is started `max_restarts` times after its last checkpoint, and four
    times as often where it is storage, and not once more. With progress each time, it is never
    given up."""
    nodes = tuple(Node(index, "abc"[index % 3]) for index in range(rules.nodes))
    outcome = Outcome(code, "again", failed=True)
    for progress in (False, True):
        events: list[Event] = []
        checkpoint = None
        for attempt in itertools.count(1):
            now = Situation(nodes, waited=1e6, outcome=outcome if events else None)
            answer = decide(rules, events, now._replace(newest=checkpoint))
            if isinstance(answer, Finish) or attempt > 20:
                break
            events.append(made.start(attempt, float(attempt), checkpoint))
            checkpoint = attempt if progress else None
            events.append(made.end(attempt, attempt + 0.5, code, checkpoint))
        starts = rules.max_restarts * (4 if code == 74 else 1)
        assert attempt - 1 == (20 if progress else starts)
        assert isinstance(answer, Start) if progress else answer.code == 80  # type: ignore[union-attr]


def test_a_spare_takes_the_place_of_a_node_that_is_gone() -> None:
    rules = Rules(nodes=2, spares=1)
    nodes = (Node(0, "a"), Node(1, "b"), Node(2, "c"))
    assert decide(rules, [], Situation(nodes)) == Start(nodes[:2], 2)
    after = Situation(nodes[::2], outcome=Outcome(-9, "lost", True))
    assert decide(rules, [made.start(1, 1.0), made.end(1, 2.0)], after) == Start(nodes[::2], 2)


def test_a_node_at_fault_again_and_again_is_taken_last() -> None:
    rules = Rules(nodes=2, spares=1, max_restarts=5)
    nodes = (Node(0, "a"), Node(1, "b"), Node(2, "c"))
    events: list[Event] = []
    for attempt, taken in ((1, nodes[:2]), (2, nodes[:2]), (3, nodes[::2])):
        answer = decide(rules, events, Situation(nodes, outcome=Outcome(1, "", True)))
        assert answer == Start(tuple(taken), 2)
        events += [made.start(attempt, attempt), made.fault(attempt, attempt, "b")]
        events += [made.end(attempt, attempt)]


def test_storage_is_left_alone_for_longer_each_time() -> None:
    rules, nodes = Rules(max_restarts=9), (Node(0, "a"),)
    events: list[Event] = []
    waits = []
    for attempt in range(1, 8):
        events += [made.start(attempt, attempt), made.end(attempt, attempt, 74)]
        answer = decide(rules, events, Situation(nodes, outcome=Outcome(74, "full", True)))
        assert isinstance(answer, Wait)
        waits.append(answer.seconds)
        later = Situation(nodes, waited=answer.seconds, outcome=Outcome(74, "full", True))
        assert isinstance(decide(rules, events, later), Start)
    assert waits == [10, 20, 40, 80, 120, 120, 120]


def test_what_was_given_up_stays_given_up() -> None:
    now = Situation((Node(0, "a"),), given_up="it was given up")
    assert decide(Rules(), [], now) == Finish("gave up", 80, "it was given up")


def test_a_run_grows_at_a_checkpoint_once_it_is_old_enough() -> None:
    rules = Rules(nodes=4, ranks=2, min_nodes=1, worlds=(2, 4, 8), grow=600)
    of = {"running": 2, "available": 4, "age": 600.0, "committed": True}
    assert policy.grows(rules, **of)  # type: ignore[arg-type]
    for change in ({"available": 3}, {"age": 599.0}, {"committed": False}, {"running": 4}):
        assert not policy.grows(rules, **(of | change))  # type: ignore[arg-type]


def test_rules_that_cannot_be_followed_are_refused() -> None:
    for wrong in ({"min_nodes": 3}, {"worlds": (1, 3)}, {"nodes": 0}, {"max_restarts": 0}):
        with pytest.raises(ValidationError):
            Rules(**({"nodes": 2} | wrong))  # type: ignore[arg-type]


# How an attempt ended.


def ended(rank: int, code: int, words: str = "") -> RankEnd:
    return RankEnd(rank, "a", "a", code, 7, "step", words, 0.2)


LOST = f"{LOST_RANK} at step 7"


@pytest.mark.parametrize(
    ("ends", "code", "kind"),
    [
        ([ended(0, 1, LOST), ended(1, -9)], -9, "death"),
        ([ended(1, -9), ended(0, 1, "out of memory")], -9, "death"),
        ([ended(0, 1, LOST), ended(1, 1, "KeyError")], 1, "crash"),
        ([ended(0, 1, LOST), ended(1, 1, LOST)], 1, "crash"),
        ([ended(0, -6), ended(1, 78, "no such data")], 78, "refused"),
        ([ended(0, 77, "diverged"), ended(1, 77, "diverged")], 77, "diverged"),
        ([ended(0, 1, LOST), ended(1, 74, "disk full")], 74, "storage"),
        ([ended(0, 76, "no progress"), ended(1, 1, LOST)], 76, "hang"),
        ([ended(0, 75, "SIGTERM"), ended(1, 75, "SIGTERM")], 75, "stopped"),
        ([ended(0, 0), ended(1, 0)], 1, "crash"),  # and nothing says that the run is complete
        ([], 1, "crash"),
    ],
)
def test_the_rank_at_fault_is_named(ends: list[RankEnd], code: int, kind: str) -> None:
    outcome = judge(ends, noticed=None, asked=None, done=False)
    assert (outcome.code, outcome.trouble and outcome.trouble.kind) == (code, kind)
    assert outcome.failed == (code not in FINAL_CODES)


def test_a_complete_run_is_done_whatever_its_ranks_do_on_their_way_out() -> None:
    ends = [ended(1, -6), ended(0, 0)]
    assert judge(ends, noticed=None, asked=None, done=True).code == 0
    assert judge(ends, noticed=None, asked="SIGTERM", done=True).code == 0
    assert judge([ended(1, 0), ended(0, -9)], noticed=None, asked=None, done=True).code == -9


def test_what_was_asked_to_stop_has_not_failed() -> None:
    saved = judge([ended(0, 75), ended(1, 75)], noticed=None, asked="STOP", done=False)
    assert saved == Outcome(75, "STOP", failed=False)
    killed = judge([], noticed=None, asked="STOP", done=False)
    assert (killed.code, killed.failed) == (-9, False) and "did not save" in killed.reason


@given(
    st.lists(
        st.builds(ended, st.integers(0, 3), CODES, st.sampled_from(["", LOST, "words"])), max_size=5
    ),
    st.none() | st.just(Trouble("lost node", "it is silent", node="b")),
    st.none() | st.just("STOP"),
    st.booleans(),
)
def test_every_end_has_an_outcome(
    ends: list[RankEnd], noticed: Trouble | None, asked: str | None, done: bool
) -> None:
    outcome = judge(ends, noticed=noticed, asked=asked, done=done)
    assert outcome.reason
    assert outcome.code != 0 or (done and any(e.rank == 0 and e.code == 0 for e in ends))
    if outcome.failed:
        assert asked is None and outcome.trouble is not None and outcome.code != 0
