"""Which nodes are measured together, and what is said of their links. Real ones: test_doctor."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.trainer.preflight.finding_states import state, text
from trainer.preflight.doctor.links import (
    EVERY_PAIR,
    Link,
    Together,
    judge_links,
    judge_sums,
    rounds,
)

NAMES = [f"node{n}" for n in range(40)]


@pytest.mark.parametrize("nodes", range(2, EVERY_PAIR + 1))
def test_few_nodes_meet_each_other_once(nodes: int) -> None:
    made = list(rounds(nodes))
    assert sorted(pair for pairs in made for pair in pairs) == list(combinations(range(nodes), 2))
    for pairs in made:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))


@pytest.mark.parametrize("nodes", [EVERY_PAIR + 1, 32, 33])
def test_many_nodes_meet_their_neighbours(nodes: int) -> None:
    made = list(rounds(nodes))
    assert sorted({frozenset(pair) for pairs in made for pair in pairs}, key=sorted) == sorted(
        {frozenset((n, (n + 1) % nodes)) for n in range(nodes)}, key=sorted
    )
    for pairs in made:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))


def test_a_link_that_is_slower_than_the_others() -> None:
    good = [Link(0, n, 1e-4, 10e9) for n in range(1, 5)]
    (found,) = judge_links(good, NAMES)
    assert found.state == "ok" and "the slowest 10.00 GB/s" in found.found
    found_slow = judge_links([*good, Link(3, 4, 1e-4, 1e9)], NAMES)
    assert "node3 - node4: 1.00 GB/s, where 10.00 are usual" in text(found_slow, "warning")
    assert judge_links([], NAMES) == []


def test_sums() -> None:
    assert "all-reduce at 50.0 GB/s" in text(judge_sums([Together("nccl", 50e9)] * 2), "ok")
    found = judge_sums([Together("nccl", error="unhandled system error"), Together("nccl", 1e9)])
    assert state(found, "collectives") == "FAILED" and "NCCL_DEBUG=INFO" in found[0].todo
    assert judge_sums([]) == []
