"""What an attempt makes of its nodes' reports."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cluster.supervise.attempt import Attempt
from cluster.supervise.limits import Limits
from cluster.supervise.members import Member
from cluster.supervise.messages import Hello, RankReport, Report
from cluster.supervise.node import Timing


def member(index: int) -> Member:
    hello = Hello(version=1, index=index, name="n", host=f"host{index}", session="0" * 32)
    return Member(hello, f"n{index}", f"10.0.0.{index}", 0.0)


def silent(ages: Mapping[int, float], *, ranks: int = 2) -> Attempt:
    """An attempt whose ranks have been silent in a step for so long. ages: by rank."""
    members = [member(index) for index in range(len(ages) // ranks)]
    attempt = Attempt(1, members, ranks, checkpoint=None, limits=Limits(), timing=Timing(), now=0.0)
    for place, one in enumerate(members):
        own = range(place * ranks, (place + 1) * ranks)
        one.report = Report(
            attempt=1,
            alive=True,
            ranks=tuple(
                RankReport(rank=rank, section="step", step=7, age=ages[rank]) for rank in own
            ),
        )
        one.reported = 1000.0
    attempt.look(1000.0)
    return attempt


def test_a_hang_names_the_rank_that_is_somewhere_else() -> None:
    """The others wait for it, and one of them fell silent first."""
    attempt = silent({0: 700.0, 1: 690.0, 2: 680.0, 3: 670.0})
    assert attempt.trouble is not None and attempt.trouble.rank == 0
    attempt.blame((2, 3))
    trouble = attempt.trouble
    assert (trouble.rank, trouble.node, trouble.host) == (2, "n1", "host1")
    assert trouble.seconds == 680.0 and trouble.kind == "hang" and "rank 2" in trouble.reason


@pytest.mark.parametrize("apart", [(), (0, 3), (99,)])
def test_else_it_names_the_most_silent_one(apart: tuple[int, ...]) -> None:
    attempt = silent({0: 700.0, 1: 690.0, 2: 680.0, 3: 670.0})
    attempt.blame(apart)
    assert attempt.trouble is not None and attempt.trouble.rank == 0


def test_without_a_hang_nobody_is_blamed() -> None:
    attempt = silent({0: 1.0, 1: 1.0})
    attempt.blame((1,))
    assert attempt.trouble is None
