"""The coordinator of a run's supervisors: it decides, and the nodes do. It lives in the process of
node 0.

                      the policy says                       all ports and nodes are ready
    nodes come --> DECIDE ------------> start: PREPARE ------------------------------> RUN
                    ^  |  ^                      | the node is gone                     |
             waits  |  |  |                      v                                      | over:
                    +--+  +---------------------------------- CLEAR <-------------------+ attempt.py
                       |        judged by the policy           kill what is left, take stacks
                       v
                   CONCLUDE: the verdict; all nodes leave

What it has to remember stands in RUN/supervision.jsonl (`history.py`). Threads alone touch files,
since the run folder may be on a mount that hangs: `watching.py` looks, and `journal.py` writes.
Imports no torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from cluster.supervise import downtime, grouping, history, policy
from cluster.supervise.attempt import Attempt
from cluster.supervise.journal import Journal
from cluster.supervise.limits import Limits
from cluster.supervise.members import Member, Members
from cluster.supervise.messages import Order
from cluster.supervise.node import Timing
from cluster.supervise.output import Output
from cluster.supervise.policy import Finish, Node, Outcome, Rules, Situation, Start, Trouble, Wait
from cluster.supervise.report import clean
from cluster.supervise.watching import FolderWatch
from trainer.run_folder import EXIT_PREEMPTED, RunFolder

_LOOK = 0.25  # seconds between two looks at everything
_TOGETHER = 0.02  # seconds in which reports are taken in together: there may be hundreds a second
_PREPARE = 10.0  # seconds for a node to find a port
_HEALTH = 25.0  # seconds for the health checks of all nodes
_CLEAR = 30.0  # seconds for killed ranks to be gone
_STACKS = 7.0  # seconds for the stacks of all nodes
_FRESH = 5.0  # seconds for a look at the run folder
_ALL_SIGNALLED = 3.0  # seconds in which a stop reaches all supervisors, if it is meant for all


class Coordinator:
    """Sees a run through on the nodes that come. `open`, then `run`."""

    def __init__(
        self,
        rules: Rules,
        folder: RunFolder,
        key: bytes,
        output: Output,
        *,
        limits: Limits,
        timing: Timing,
        own_address: str,
    ) -> None:
        self._rules, self._folder, self._output = rules, folder, output
        self._limits, self._timing = limits, timing
        self._journal = Journal(folder)
        self._members = Members(
            key,
            timing,
            own_address=own_address,
            came=self._journal.joined,
            went=self._left,
            say=self._say,
        )
        self._folder_watch = FolderWatch(folder)
        self._checks = 0  # of health
        self._sent_away = False  # a node was told to go since the last start
        self._given_up: str | None = None
        self._said_waiting = ""
        self._own_node_left: float | None = None  # when node 0 was told to go
        self._running: Attempt | None = None
        self._left_out = set[str]()  # nodes that were said to be unfit
        self._users_stop: str | None = None  # why the run ends, once a user has asked for it

    async def open(self, port: int) -> None:
        """Listen for nodes. Raises OSError where the port is taken."""
        await self._members.open(port)

    async def run(self) -> Finish:
        """See the run through. Returns the verdict, after all nodes were told. Raises DataError
        where the history of the run cannot be read."""
        await self._remember()
        outcome: Outcome | None = None
        while True:
            decision = await self._decide(outcome)
            if isinstance(decision, Finish):
                await self._conclude(decision)
                return decision
            outcome = await self._attempt(decision)

    async def _remember(self) -> None:
        """Read what earlier supervisors of this run did."""
        await self._journal.open()
        await self._folder_watch.fresh(_FRESH)
        verdict = history.last(self._journal.events, history.Verdict)
        if verdict is not None and verdict.verdict == "gave up" and self._folder_watch.failure:
            self._given_up = (
                f"this run was given up before: {verdict.reason}. Mend that, remove "
                f"{self._folder.failure}, and start it again"
            )

    # Between two attempts.

    async def _decide(self, outcome: Outcome | None) -> Start | Finish:
        """Ask the policy until it does not want to wait any more."""
        begun = time.monotonic()
        self._said_waiting = ""
        await self._folder_watch.fresh(_FRESH)
        if outcome is not None and outcome.failed:
            self._checks += 1
        while True:
            self._members.look()
            self._let_rest()
            if (ends := self._own_node_leaves()) is not None:
                return ends
            situation = self._situation(outcome, begun)
            decision = policy.decide(self._rules, self._journal.events, situation)
            if not isinstance(decision, Wait):
                return decision
            if decision.why != self._said_waiting and decision.seconds > 1.0:
                self._say(f"{decision.why}; waiting for {decision.seconds:.0f} s at most")
                self._said_waiting = decision.why
            await self._change(min(decision.seconds, _LOOK))

    def _let_rest(self, but: Sequence[Member] = ()) -> None:
        """Let all other nodes rest, and those that go away go."""
        for member in self._members.there():
            if member in but:
                continue
            goes = member.report.leaving is not None and not member.report.alive and member.index
            if goes:
                member.tell(Order(do="leave", code=EXIT_PREEMPTED))
            else:
                member.tell(Order(do="rest", check=self._checks))

    def _situation(self, outcome: Outcome | None, begun: float) -> Situation:
        waited = time.monotonic() - begun
        fit, unsure = [], 0
        for member in self._members.all.values():
            report = member.report
            if member.lost is not None or report.leaving is not None:
                self._sent_away |= report.leaving == "signal"
                continue
            checked = report.checked >= self._checks or waited > _HEALTH
            if not member.is_there or report.alive or not checked:
                unsure += waited < _CLEAR
            elif report.unfit is None:
                fit.append(Node(member.index, member.name))
                self._left_out.discard(member.name)
            else:
                self._leave_out(member, report.unfit)
        return Situation(
            nodes=tuple(sorted(fit)),
            unsure=unsure,
            waited=waited,
            outcome=outcome,
            stop=self._stop_reason(),
            sent_away=self._sent_away,
            given_up=self._given_up,
            newest=self._folder_watch.newest,
        )

    def _leave_out(self, member: Member, reason: str) -> None:
        """Say once that a node is not fit."""
        if member.name in self._left_out:
            return
        self._left_out.add(member.name)
        reason = f"{member.name} is not fit and is left out: {reason}"[:2000]
        self._journal.failed(Trouble("unfit node", reason, node=member.name, host=member.host))
        self._say(reason)

    def _stop_reason(self) -> str | None:
        """Why the whole run is to stop; None where it is not."""
        if self._folder_watch.stop:
            self._users_stop = f"{self._folder.stop} exists"
        if self._users_stop is not None:  # the ranks remove the file when they have saved
            return self._users_stop
        there = self._members.there()
        if there and all(member.report.leaving == "signal" for member in there):
            return there[0].report.reason
        return None

    def _own_node_leaves(self) -> Finish | None:
        """The verdict where node 0, and so the coordinator, has to end, and others have not."""
        own = self._members.all.get(0)
        if own is None or own.report.leaving is None or self._stop_reason() is not None:
            return None
        if own.report.leaving == "launcher":
            return Finish("incomplete", history.EXIT_INCOMPLETE, own.report.reason)
        self._own_node_left = self._own_node_left or time.monotonic()
        if time.monotonic() - self._own_node_left < _ALL_SIGNALLED:
            return None
        return Finish("incomplete", EXIT_PREEMPTED, own.report.reason)

    # An attempt.

    async def _attempt(self, start: Start) -> Outcome:
        members = [self._members.all[node.number] for node in start.nodes]
        self._sent_away = False
        reports = [member.report for member in self._members.all.values()]
        known = max(max(report.attempt, report.prepared) for report in reports)
        number = self._journal.next_attempt(known)
        await self._folder_watch.fresh(_FRESH)
        attempt = Attempt(
            number,
            members,
            self._rules.ranks,
            checkpoint=self._folder_watch.newest,
            limits=self._limits,
            timing=self._timing,
            now=time.monotonic(),
        )
        port = await self._prepare(members[0], number)
        self._journal.started(attempt)
        if port is None:
            first = members[0]
            reason = "it names no free port at which the ranks could meet"
            attempt.trouble = Trouble(
                "lost node",
                f"{first.name}: {first.lost or reason}",
                node=first.name,
                host=first.host,
            )
        else:
            self._say(_starting(attempt))
            self._running = attempt
            for place, member in enumerate(members):
                member.tell(attempt.order(place, port))
            await self._see_through(attempt)
        return await self._end(attempt)

    async def _prepare(self, member: Member, number: int) -> int | None:
        """Return the port at which the ranks of an attempt meet. None where the node does not name
        one."""
        deadline = time.monotonic() + _PREPARE
        member.tell(Order(do="prepare", attempt=number, check=self._checks))
        while member.lost is None and time.monotonic() < deadline:
            if member.report.prepared == number:
                return member.report.port
            await self._change(_LOOK)
            self._members.look()
        return None

    async def _see_through(self, attempt: Attempt) -> None:
        """Watch an attempt until it is over."""
        while True:
            await self._change(_LOOK)
            self._members.look()
            self._let_rest(attempt.members)
            now, committed = time.monotonic(), self._take_checkpoint(attempt)
            stepped = attempt.stepped
            attempt.look(now)
            if attempt.stepped is not None and stepped is None:
                self._journal.stepped(attempt, now)
                self._say(self._stepped(attempt))
            if attempt.is_over(now):
                return
            if attempt.asked is None and (reason := self._why_stop(attempt, committed)):
                attempt.ask_to_stop(reason, now)
                self._say(f"{reason}: all ranks are asked to save and stop")
            if attempt.asked is not None:
                for member in attempt.members:
                    member.tell(Order(do="stop", attempt=attempt.number, check=self._checks))

    def _why_stop(self, attempt: Attempt, committed: bool) -> str | None:
        """Why all ranks are to save and stop now; None where they go on."""
        if (reason := self._stop_reason()) is not None:
            return reason
        for member in attempt.members:
            if member.report.leaving is not None and member.lost is None:
                return member.report.reason
        free = [
            member
            for member in self._members.there()
            if member not in attempt.members
            and member.report.leaving is None
            and member.report.unfit is None
            and member.report.checked >= self._checks
        ]
        if policy.grows(
            self._rules,
            running=len(attempt.members),
            available=len(attempt.members) + len(free),
            age=time.monotonic() - attempt.begun,
            committed=committed,
        ):
            return f"{', '.join(member.name for member in free)} can take part"
        return None

    def _take_checkpoint(self, attempt: Attempt) -> bool:
        """Return whether a checkpoint was committed since the last look, and have that noted."""
        newest, before = self._folder_watch.newest, attempt.committed
        if newest is None or newest <= (-1 if before is None else before):
            return False
        attempt.committed = newest
        self._journal.committed(attempt, newest)
        return True

    async def _end(self, attempt: Attempt) -> Outcome:
        """Take stacks where ranks hang, kill what is left, and judge."""
        if attempt.hanging is not None:
            await self._take_stacks(attempt)
        await self._clear(attempt)
        await self._folder_watch.fresh(_FRESH)
        asked = attempt.asked or self._asked_behind_our_backs(attempt)
        outcome = policy.judge(
            list(attempt.ends.values()),
            noticed=attempt.trouble,
            asked=asked,
            done=self._folder_watch.done,
        )
        self._running = None
        if outcome.trouble is not None:
            since = time.monotonic() - (attempt.noticed or time.monotonic())
            self._journal.failed(outcome.trouble, since)
        self._take_checkpoint(attempt)
        self._journal.ended(attempt, outcome, self._folder_watch.newest)
        self._say(self._ended(outcome))
        return outcome

    def _asked_behind_our_backs(self, attempt: Attempt) -> str | None:
        """Why the ranks stopped, where they were asked to by the file, and removed it already."""
        first = attempt.ends.get(0)
        if first is None or first.code != EXIT_PREEMPTED:
            return None
        if not self._folder_watch.stopped_by_file:
            return None
        self._users_stop = f"there was a {self._folder.stop}"
        return first.words or self._users_stop

    async def _take_stacks(self, attempt: Attempt) -> None:
        deadline = time.monotonic() + _STACKS
        for member in attempt.members:
            member.stacks = None
            member.tell(member.order.model_copy(update={"stacks": True, "check": self._checks}))

        def asked() -> list[Member]:
            return [member for member in attempt.members if member.lost is None]

        while time.monotonic() < deadline and any(m.stacks is None for m in asked()):
            await self._change(_LOOK)
            self._members.look()
        stacks = [
            stack for m in attempt.members if m.stacks is not None for stack in m.stacks.stacks
        ]
        if not stacks:
            return
        summary = grouping.summary(stacks)[:2000]
        file = self._journal.hangs(attempt, summary, grouping.report(stacks))
        self._say(f"{summary}; all stacks are in {file}")
        attempt.blame(grouping.apart(stacks))

    async def _clear(self, attempt: Attempt) -> None:
        """Kill what is left of an attempt. A node on which it does not go is given up."""
        deadline = time.monotonic() + _CLEAR
        for member in attempt.members:
            member.tell(Order(do="kill", attempt=attempt.number, check=self._checks))
        while attempt.busy() and time.monotonic() < deadline:
            await self._change(_LOOK)
            self._members.look()
        for member in attempt.busy():
            self._say(f"{member.name} cannot end its ranks and is left out")

    # The end.

    async def _conclude(self, verdict: Finish) -> None:
        """Write the verdict down, and send all nodes home with it."""
        gives_up = verdict.verdict == "gave up" and self._given_up is None
        if gives_up and (report := await self._journal.report_failure(verdict)):
            self._output.say(report)
        by_user = verdict.verdict == "stopped" and self._users_stop is not None
        self._journal.concluded(verdict, by_user)
        self._say(f"{verdict.verdict}: {verdict.reason} (exit code {verdict.code})")
        if verdict.verdict == "stopped":
            self._journal.forget_stop()
        await self._journal.finish()
        for member in self._members.all.values():
            member.tell(
                Order(
                    do="leave",
                    verdict=verdict.verdict,
                    code=verdict.code,
                    reason=verdict.reason[:2000],
                )
            )
        deadline = time.monotonic() + self._timing.reconnect
        while time.monotonic() < deadline and any(
            not member.obeys for member in self._members.there()
        ):
            await self._change(_LOOK)
        await self._members.close()

    # What is said.

    def _left(self, member: Member, reason: str) -> None:
        self._journal.left(member, reason)
        if self._running is None or member not in self._running.members:
            self._say(f"{member.name} is gone: {reason}")

    def _stepped(self, attempt: Attempt) -> str:
        assert attempt.stepped is not None
        text = f"{attempt.stepped - attempt.begun:.0f} s after the start"
        recovered = downtime.recoveries(self._journal.events)
        if recovered and recovered[-1].fault.attempt == attempt.number - 1:
            text += f" and {recovered[-1].stepped:.0f} s after the fault"
        return f"step {attempt.step} is reached, {text}"

    def _ended(self, outcome: Outcome) -> str:
        newest = self._folder_watch.newest
        where = "the beginning" if newest is None else f"step {newest}"
        text = outcome.reason
        if outcome.trouble is not None and outcome.trouble.seconds:
            text += f" ({outcome.trouble.seconds:.1f} s after the last sign of life)"
        if outcome.failed:
            failures = history.failures_without_progress(self._journal.events, newest)
            chances = self._rules.chances(outcome.code)
            text += f"; the run stands at {where}"
            text += f" ({failures} of {chances} failures without progress)"
        return text

    def _say(self, line: str) -> None:
        self._output.say(f"supervisor: {clean(line)}")

    async def _change(self, seconds: float) -> None:
        """Wait until something changes, for so long at most."""
        self._journal.sign()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._members.changed.wait()
                await asyncio.sleep(_TOGETHER)
        self._members.changed.clear()


def _starting(attempt: Attempt) -> str:
    nodes = f"{len(attempt.members)} node{'s' * (len(attempt.members) > 1)}"
    where = "the beginning" if attempt.checkpoint is None else f"step {attempt.checkpoint}"
    names: Sequence[str] = [member.name for member in attempt.members]
    return (
        f"attempt {attempt.number}: starting {attempt.world} ranks on {nodes} "
        f"({', '.join(names)}) from {where}"
    )
