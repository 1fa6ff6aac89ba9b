"""How long a rank may be silent in each section of a run, and which ranks were silent for longer.

A rank names its section and beats whenever it gets on (`trainer/resilience/heartbeat.py`). It is
slow while it still beats, however slow it is; it hangs where it has not beaten for longer than its
section may take. What a step takes is learnt from the run itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from model.documents import Settings

LONGEST = 7 * 86_400.0  # seconds
_FACTOR = 10.0  # of the slowest hundredth of the steps
_KEPT = 1000  # times of steps from which the time of a step is learnt
_LEARNERS = 8  # ranks that they are taken from


class Limits(Settings):
    """The options of a supervisor that say how long a rank may be silent, in seconds."""

    limit_setup: float = Field(
        600,
        ge=1,
        le=LONGEST,
        description="seconds of silence in which a rank loads its libraries and meets the others",
    )
    limit_restore: float = Field(
        1800,
        ge=1,
        le=LONGEST,
        description="seconds of silence in which a rank reads its part of a checkpoint",
    )
    limit_data: float = Field(
        120,
        ge=1,
        le=LONGEST,
        description="seconds of silence between two steps; a rank that waits for data beats",
    )
    limit_step: float = Field(
        30,
        ge=1,
        le=LONGEST,
        description="seconds of silence in a step, or 10 times the p99 of steps where that is more",
    )
    limit_first_step: float = Field(
        600,
        ge=1,
        le=LONGEST,
        description="seconds of silence in the first step of an attempt, which may compile",
    )
    limit_save: float = Field(
        600,
        ge=1,
        le=LONGEST,
        description="seconds of silence while a checkpoint is copied, or the last one is written",
    )
    limit_end: float = Field(
        600, ge=1, le=LONGEST, description="seconds of silence while a run is concluded"
    )
    limit_exit: float = Field(
        60,
        ge=1,
        le=LONGEST,
        description="seconds for which a rank may stay after it has said why it ends",
    )

    @property
    def longest(self) -> float:
        """The largest of the fixed limits."""
        return max(float(value) for value in self.model_dump().values())


class Sign(NamedTuple):
    """The last sign of life of a rank.

    section: as the rank names it; None where the process of this attempt has not beaten yet.
    age: seconds since its main thread beat, or, where it has not, since it was started.
    """

    rank: int
    section: str | None
    step: int
    age: float


class Overdue(NamedTuple):
    """A rank that hangs. seconds: for how long it is silent. limit: for how long it might be; more
    than that where others hang already, and it has been silent for longer than they."""

    rank: int
    section: str
    step: int
    seconds: float
    limit: float

    def __str__(self) -> str:
        silent = (
            f"rank {self.rank} has been silent for {self.seconds:.0f} s in {self.section} at step "
            f"{self.step}"
        )
        if self.seconds <= self.limit:
            return f"{silent}, and others that wait for it hang"
        return f"{silent}, where {self.limit:.0f} s are allowed"


class BeatAges:
    """The ages of the ranks' last beats by the watcher's own monotonic clock.

    The time in a heartbeat only tells one beat from another: an age is counted from when a beat was
    seen first. So a wall clock that jumps, or that differs between hosts, makes no rank hang.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def age(self, rank: int, beat: object, now: float) -> float:
        """Return for how many seconds this has been the rank's last beat. beat: anything that
        differs from one beat to the next. now: seconds of a monotonic clock."""
        if rank not in self._seen or self._seen[rank][0] != beat:
            self._seen[rank] = beat, now
        return max(0.0, now - self._seen[rank][1])


class _Anchor(NamedTuple):
    """The last beat of a rank within its steps. moment: of the watcher's clock."""

    step: int
    moment: float


class SilenceWatch:
    """Judges the silence of ranks during one attempt: the next attempt takes a new one.

    It is told all signs of life again and again, several times in the shortest limit. It looks at
    no clock and no file.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._anchors: dict[int, _Anchor] = {}
        self._stepped = set[int]()  # ranks that have made a step in this attempt
        # Ranks make their steps together, so a few of them tell how long these take.
        self._learners = set[int]()
        self._seconds = deque[float](maxlen=_KEPT)  # of the latest steps, from the learners
        self._first_seconds = 0.0  # the longest first step of a rank: it counts while it is alone
        self._p99: float | None = None

    def observe(self, signs: Iterable[Sign], now: float) -> list[Overdue]:
        """Learn from signs of life, and return the ranks that hang, the most silent first.

        Ranks wait for each other, and not all in the same section. So where one hangs, those that
        have been silent for longer hang as well: the first of them is what all wait for.

        now: seconds of a monotonic clock.
        """
        ranks = []
        for sign in signs:
            self._learn(sign, now - sign.age)
            limit = self.limit(sign.rank, sign.section)
            section = sign.section or "setup"
            ranks.append(Overdue(sign.rank, section, sign.step, sign.age, limit))
        silent = max((rank.seconds for rank in ranks if rank.seconds > rank.limit), default=None)
        if silent is None:
            return []
        hanging = [r for r in ranks if r.seconds > r.limit or r.seconds > silent]
        return sorted(hanging, key=lambda rank: (-rank.seconds, rank.rank))

    def limit(self, rank: int, section: str | None) -> float:
        """Return for how many seconds a rank may now be silent in a section. In a section that this
        version does not know, that is the longest of all limits."""
        limits = self._limits
        if section == "step":
            if rank not in self._stepped:
                return max(limits.limit_first_step, limits.limit_step)
            return max(limits.limit_step, _FACTOR * (self.step_seconds or 0.0))
        fixed = {
            None: limits.limit_setup,
            "setup": limits.limit_setup,
            "restore": limits.limit_restore,
            "data": limits.limit_data,
            "save": limits.limit_save,
            "end": limits.limit_end,
            "exit": limits.limit_exit,
        }
        return fixed.get(section, limits.longest)

    @property
    def step_seconds(self) -> float | None:
        """The time that all but the slowest hundredth of the latest steps took. None before the
        first step."""
        if not self._seconds:
            return self._first_seconds or None
        if self._p99 is None:
            ordered = sorted(self._seconds)
            self._p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return self._p99

    def _learn(self, sign: Sign, moment: float) -> None:
        """Take the time between two beats of a rank for its steps in between.

        It begins with the last beat at a step, so that a wait for data does not count, and ends
        with the first one at a later step:

            step 7 ........ | data 8   data 8   data 8 | step 8 ........ | save 9   restore 9
                  counts    |      a wait for data     |      counts     |
        """
        before = self._anchors.pop(sign.rank, None)
        if sign.section in ("data", "step"):
            self._anchors[sign.rank] = _Anchor(sign.step, moment)
        elif sign.section not in ("save", "end"):
            return
        if before is None or sign.step <= before.step or moment <= before.moment:
            return  # the same step, a rewind, or a clock that went back
        seconds = (moment - before.moment) / (sign.step - before.step)
        if sign.rank in self._stepped:
            if len(self._learners) < _LEARNERS:
                self._learners.add(sign.rank)
            if sign.rank in self._learners:
                self._seconds.append(seconds)
                self._p99 = None
        else:
            self._stepped.add(sign.rank)
            self._first_seconds = max(self._first_seconds, seconds)
