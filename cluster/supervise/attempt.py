"""One start of all ranks, as the coordinator sees it: what its nodes report, and when it is over.

An attempt is over when all its ranks have ended. It is ended by us when

    a node is lost, or a rank hangs        at once
    a rank died or crashed                 after 2 s for the last words of the others
    a rank ended with a code of ours       after 30 s for the same of the others; while they save
                                           (0, 75), only a hang ends it
    the ranks were asked to stop           after the grace
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.supervise.limits import Limits, Overdue, Sign, SilenceWatch
from cluster.supervise.members import Member
from cluster.supervise.messages import Order, RankReport
from cluster.supervise.node import Timing
from cluster.supervise.policy import RankEnd, Trouble
from trainer.run_folder import EXIT_DONE, EXIT_PREEMPTED, OWN_CODES


class Attempt:
    """What is known of an attempt.

    members: its nodes, in the order of their ranks. ends: of the ranks, as they were noticed, until
    we killed the others. trouble: what went wrong besides. noticed: when something of both was seen
    first. asked: why the ranks were asked to stop. committed: the newest checkpoint.
    """

    def __init__(
        self,
        number: int,
        members: Sequence[Member],
        ranks: int,
        *,
        checkpoint: int | None,
        limits: Limits,
        timing: Timing,
        now: float,
    ) -> None:
        self.number, self.members, self.ranks = number, tuple(members), ranks
        self.checkpoint = self.committed = checkpoint
        self.begun = now
        self._timing, self._watch = timing, SilenceWatch(limits)
        self.ends: dict[int, RankEnd] = {}
        self.trouble: Trouble | None = None
        self.noticed: float | None = None
        self.hanging: Overdue | None = None
        self._signs: dict[int, Sign] = {}  # of the ranks that have not ended, at the last look
        self.asked: str | None = None
        self._deadline: float | None = None
        self._restored: dict[int, int] = {}  # the first step at which a rank was seen to train
        self.step: int | None = None  # the last that any rank named
        self.stepped: float | None = None  # when the first new step was made

    @property
    def world(self) -> int:
        return len(self.members) * self.ranks

    def order(self, place: int, port: int) -> Order:
        """Return the order to start the ranks of a node. place: among the members."""
        return Order(
            do="run",
            attempt=self.number,
            first_rank=place * self.ranks,
            ranks=self.ranks,
            world=self.world,
            address=self.members[0].address,
            port=port,
        )

    def ask_to_stop(self, reason: str, now: float) -> None:
        """Note that the ranks are asked to save and end."""
        if self.asked is None:
            self.asked = reason
            self._end_by(now + self._timing.grace)

    def look(self, now: float) -> None:
        """Take in what the nodes have reported."""
        signs: list[Sign] = []
        for member in self.members:
            report = member.report
            if report.attempt != self.number:
                continue
            for rank in report.ranks:
                age = rank.age + now - member.reported
                self._follow(rank, now - age)
                if rank.code is not None:
                    self._take_end(member, rank, now)
                else:
                    signs.append(Sign(rank.rank, rank.section, rank.step, age))
        for place, member in enumerate(self.members):
            own = range(place * self.ranks, (place + 1) * self.ranks)
            if member.lost is not None and not self.ends.keys() >= set(own) and not self.trouble:
                self.trouble = _lost(member)
        self._signs = {sign.rank: sign for sign in signs}
        overdue = self._watch.observe(signs, now)
        # Ranks that wait for one that ended fall silent, and are about to be killed.
        if overdue and self.trouble is None and self._deadline is None:
            self.hanging = overdue[0]
            self.trouble = self._hang(overdue[0])
        if self.noticed is None and (self.trouble is not None or self._failed()):
            self.noticed = now

    def blame(self, apart: Sequence[int]) -> None:
        """Name another rank for a hang than the most silent one: of those that are somewhere else
        than most ranks, the most silent. Most ranks fall silent since they wait for it."""
        signs = [self._signs[rank] for rank in apart if rank in self._signs]
        if self.hanging is None or self.hanging.rank in apart or not signs:
            return
        sign = max(signs, key=lambda sign: (sign.age, -sign.rank))
        limit = self._watch.limit(sign.rank, sign.section)
        self.hanging = Overdue(sign.rank, sign.section or "setup", sign.step, sign.age, limit)
        self.trouble = self._hang(self.hanging)

    def _failed(self) -> bool:
        """Whether a rank has ended as none should."""
        return any(end.code != EXIT_DONE for end in self.ends.values())

    def _follow(self, rank: RankReport, moment: float) -> None:
        """Notice the first new step. moment: of the sign of life."""
        if rank.section not in ("data", "step", "save", "end", "exit"):
            return
        self.step = max(self.step or 0, rank.step)
        restored = self._restored.setdefault(rank.rank, rank.step)
        known = self.checkpoint or 0
        if self.stepped is None and rank.step > min(known, restored):
            self.stepped = max(moment, self.begun)

    def _take_end(self, member: Member, rank: RankReport, now: float) -> None:
        assert rank.code is not None
        known = self.ends.get(rank.rank)
        if known is not None and (known.words or not rank.words):
            return
        self.ends[rank.rank] = RankEnd(
            rank=rank.rank,
            node=member.name,
            host=member.host,
            code=rank.code,
            step=rank.step,
            section=rank.section,
            words=rank.words,
            seconds=rank.age,
        )
        if rank.code not in (EXIT_DONE, *OWN_CODES):
            self._end_by(now + self._timing.words)
        elif rank.code not in (EXIT_DONE, EXIT_PREEMPTED):
            self._end_by(now + self._timing.verdicts)

    def _end_by(self, deadline: float) -> None:
        self._deadline = min(deadline, self._deadline or deadline)

    def is_over(self, now: float) -> bool:
        """Whether the ranks that are left are to be killed, or none is left."""
        late = self._deadline is not None and now >= self._deadline
        return self.trouble is not None or late or len(self.ends) == self.world

    def busy(self) -> list[Member]:
        """Return the nodes that are not lost, and on which something may still live, although they
        were told to kill it."""
        return [m for m in self.members if m.lost is None and (m.report.alive or not m.obeys)]

    def _hang(self, overdue: Overdue) -> Trouble:
        place = self.members[overdue.rank // self.ranks]
        return Trouble(
            "hang",
            f"{overdue} (on {place.name})",
            seconds=overdue.seconds,
            rank=overdue.rank,
            node=place.name,
            host=place.host,
            step=overdue.step,
            section=overdue.section,
        )


def _lost(member: Member) -> Trouble:
    reason = f"{member.name} is lost: {member.lost}"
    return Trouble("lost node", reason, seconds=member.silence, node=member.name, host=member.host)
