"""The time-outs of a supervised run, and the order in which they have to stand.

Two chains. Whoever stands further right may assume that those to its left had their turn; where the
order is inverted, the coarser means strikes first, and nobody learns why.

    beat < lost node < silence in a step < health.hang < collective_timeout
    estimated save < grace < notice of the scheduler

The first chain is about finding out: a node beats every second; the coordinator takes a node for
lost; the supervisor sees that a rank hangs, collects the stacks of all ranks and starts them again;
a rank that nobody supervises ends by itself (76); an exchange between ranks gives up. The second is
about saving: how long a save takes; how long whoever stops the run waits for it; how long before
the end the scheduler says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.errors import ConfigError

BEAT_SECONDS = 1.0  # between two beats of a node
LOST_SECONDS = 10.0  # of silence, after which a node is lost
# A scheduler that stops a job has to say so this much earlier than the ranks need for their save:
# the supervisors hear of it, ask all ranks, and write what came of it.
NOTICE_MARGIN = 30.0


class Timeout(NamedTuple):
    """One time-out. seconds: None where there is none. setting: what changes it; empty: nothing."""

    name: str
    seconds: float | None
    meaning: str
    setting: str = ""


@dataclass(frozen=True)
class Timeouts:
    """The time-outs of a run, in seconds.

    step: silence of a rank in a step, at least. hang: `health.hang`, 0 for never. collective:
    `collective_timeout`. save: how long a save is estimated to take; None where it is not known.
    grace: for the save when the run is asked to stop. notice: how long before its end the scheduler
    warns the job; None without a scheduler.
    """

    step: float
    hang: float
    collective: float
    grace: float
    save: float | None = None
    notice: float | None = None

    def finding_out(self) -> list[Timeout]:
        """Return the chain of those that find a fault, in the order in which they have to stand."""
        return [
            Timeout("beat", BEAT_SECONDS, "between two beats of a node"),
            Timeout("lost node", LOST_SECONDS, "of silence: the node is lost"),
            Timeout(
                "silence in a step",
                self.step,
                "or 10 x p99: stacks, then a new start",
                "--limit-step",
            ),
            Timeout(
                "health.hang",
                self.hang or None,
                "no progress: a rank ends itself (76)",
                "health.hang",
            ),
            Timeout(
                "collective_timeout",
                self.collective,
                "an exchange between ranks gives up",
                "collective_timeout",
            ),
        ]

    def saving(self) -> list[Timeout]:
        """Return the chain of those around a save, in the order in which they have to stand."""
        chain = [
            Timeout("save", self.save, "of a checkpoint, as estimated"),
            Timeout("grace", self.grace, "for the save when asked to stop", "--grace"),
        ]
        if self.notice is not None:
            meaning = "of the scheduler before its end"
            chain.append(Timeout("notice", self.notice, meaning, "--grace"))
        return chain

    def inverted(self) -> list[str]:
        """Return a sentence for each pair that stands the wrong way round, with what to set."""
        return _inverted(self.finding_out()) + _inverted(self.saving())

    def check(self) -> None:
        """Raise ConfigError where the order does not work."""
        if wrong := self.inverted():
            raise ConfigError(f"time-outs in an order that does not work: {'; '.join(wrong)}")


def _inverted(chain: Sequence[Timeout]) -> list[str]:
    wrong = []
    known = [timeout for timeout in chain if timeout.seconds is not None]
    for first, second in itertools.pairwise(known):
        assert first.seconds is not None and second.seconds is not None
        if first.seconds < second.seconds:
            continue
        ways = []
        if second.setting:
            ways.append(f"{second.setting} above {first.seconds:g}")
        if first.setting and first.setting != second.setting:
            ways.append(f"{first.setting} below {second.seconds:g}")
        wrong.append(
            f"{first.name} ({first.seconds:g} s) must be shorter than {second.name} "
            f"({second.seconds:g} s): set {' or '.join(ways)}"
        )
    return wrong
