"""Hosts that come back are noticed, and taken where more nodes can train with them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.launch.hosts import Hosts
from cluster.launch.newcomers import Newcomers
from cluster.supervise.policy import Rules

LISTED = Hosts(dict.fromkeys("abcd", 1))


class World:
    """Hosts that answer or not, and a clock that is set by hand."""

    def __init__(self, started: str, rules: Rules) -> None:
        self.now = 1000.0
        self.silent = set("abcd") - set(started)
        self.asked: list[list[str]] = []
        self.newcomers = Newcomers(
            *(LISTED, LISTED.among(started), rules), ask=self.ask, clock=lambda: self.now
        )

    def ask(self, names: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(names))
        return {name: "gone" for name in names if name in self.silent}


def test_a_host_that_is_back_is_noticed_after_a_while() -> None:
    world = World("ab", Rules(nodes=3, ranks=1, min_nodes=1, spares=1, grow=600))
    world.silent = set()
    assert world.newcomers.came() == [] and not world.asked  # a start is worth its while first
    world.now += 601
    world.silent = {"c", "d"}
    assert world.newcomers.came() == [] and world.asked == [["c", "d"]]
    world.silent = {"c"}
    world.now += 1
    assert world.newcomers.came() == [] and len(world.asked) == 1  # not asked again and again
    world.now += 30
    assert world.newcomers.came() == ["d"]


@pytest.mark.parametrize(
    ("started", "rules"),
    [
        ("abcd", Rules(nodes=4, ranks=1)),  # all are there
        ("abc", Rules(nodes=3, ranks=1, spares=1)),  # only a spare is missing
    ],
)
def test_nobody_is_asked_where_no_more_nodes_could_train(started: str, rules: Rules) -> None:
    world = World(started, rules)
    world.silent, world.now = set(), world.now + 1e6
    assert world.newcomers.came() == [] and not world.asked


def test_a_node_that_the_batch_has_no_place_for_is_not_taken() -> None:
    rules = Rules(nodes=4, ranks=1, min_nodes=1, worlds=(1, 2, 4), grow=0)
    world = World("ab", rules)
    world.silent, world.now = {"d"}, world.now + 1
    assert world.newcomers.came() == [] and world.asked  # three ranks cannot share it
    world.silent, world.now = set(), world.now + 31
    assert world.newcomers.came() == ["c", "d"]
