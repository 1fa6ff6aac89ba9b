"""What the coordinator writes down: the events of RUN/supervision.jsonl, stacks, the report of a
failure.

    coordinator --event--> memory, which the policy asks
                   \\---> thread --> files of the run folder

The run folder may be on a mount that hangs. So the coordinator waits for files at its start and at
its end, there for some seconds at most, and never between. Imports no torch.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cluster.supervise import history
from cluster.supervise.attempt import Attempt
from cluster.supervise.history import Event, NodeName
from cluster.supervise.members import Member
from cluster.supervise.policy import Finish, Outcome, Trouble
from cluster.supervise.report import failure_report
from trainer import records
from trainer.run_folder import RunFolder

_SIGN = 60.0  # seconds between our signs of life, where there is nothing to write down
_REPORT = 20.0  # seconds for the report of a failure
_FINISH = 5.0  # seconds for what waits to be written at the end
_LONGEST = 2000  # characters of a reason


class Journal:
    """The history of a run, to which each function adds an event. `open` comes first.

    events: all of them, oldest first. attempt: the number of the attempt that new ones belong to; 0
    before the first.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "history")
        self._signed = time.monotonic()
        self.events: list[Event] = []
        self.attempt = 0

    async def open(self) -> None:
        """Read what earlier supervisors of this run did. Raises DataError where it cannot be
        read."""
        path = self._folder.supervision
        await asyncio.wrap_future(self._thread.submit(history.mend, path))
        self.events = await asyncio.wrap_future(self._thread.submit(history.read, path))
        self.attempt = history.attempts_so_far(self.events)

    # Nodes.

    def joined(self, member: Member, reason: str) -> None:
        """A node came."""
        self._note_node(history.Joined, member, reason)

    def left(self, member: Member, reason: str) -> None:
        """A node went, or is lost."""
        self._note_node(history.Left, member, reason)

    def _note_node(
        self, event: type[history.Joined | history.Left], member: Member, reason: str
    ) -> None:
        self._note(
            event(
                time=time.time(),
                attempt=self.attempt,
                node=member.name,
                host=member.host,
                reason=reason,
            )
        )

    # An attempt.

    def next_attempt(self, known: int) -> int:
        """Return the number of the next attempt, to which new events belong from now on. known: the
        highest one that a node has heard of."""
        self.attempt = 1 + max(self.attempt, known)
        return self.attempt

    def started(self, attempt: Attempt) -> None:
        """An attempt begins."""
        self._note(
            history.Start(
                time=time.time(),
                attempt=attempt.number,
                nodes=tuple(NodeName(node=m.name, host=m.host) for m in attempt.members),
                ranks=attempt.world,
                checkpoint=attempt.checkpoint,
            )
        )

    def stepped(self, attempt: Attempt, now: float) -> None:
        """The first new step of an attempt is made. now: as `attempt.stepped` has it, a moment of
        the monotonic clock."""
        assert attempt.stepped is not None and attempt.step is not None
        self._note(
            history.Progress(
                time=time.time() - (now - attempt.stepped),
                attempt=attempt.number,
                step=attempt.step,
                seconds=round(attempt.stepped - attempt.begun, 3),
            )
        )

    def committed(self, attempt: Attempt, step: int) -> None:
        """A checkpoint is committed."""
        self._note(history.Checkpoint(time=time.time(), attempt=attempt.number, step=step))

    def failed(self, trouble: Trouble, since: float = 0.0) -> None:
        """Something went wrong. since: seconds since that was noticed."""
        self._note(
            history.Fault(time=time.time() - since, attempt=self.attempt, **trouble._asdict())
        )

    def hangs(self, attempt: Attempt, summary: str, stacks: str) -> Path:
        """A rank hangs. summary: where all ranks are, in a line. stacks: the same in full. Returns
        the file that holds them."""
        file = self._folder.stacks / f"attempt-{attempt.number}.txt"
        self._thread.submit(_write, file, stacks)
        name = file.relative_to(self._folder.path).as_posix()
        self._note(
            history.Stacks(time=time.time(), attempt=attempt.number, file=name, summary=summary)
        )
        return file

    def ended(self, attempt: Attempt, outcome: Outcome, checkpoint: int | None) -> None:
        """All ranks of an attempt have ended. checkpoint: the newest committed one."""
        self._note(
            history.End(
                time=time.time(),
                attempt=attempt.number,
                code=outcome.code,
                step=attempt.step,
                checkpoint=checkpoint,
                reason=outcome.reason[:_LONGEST],
                failed=outcome.failed,
            )
        )

    # The end.

    async def report_failure(self, verdict: Finish) -> str:
        """Write RUN/failure.txt. Returns its text; none where that takes too long."""

        def report() -> str:
            text = failure_report(
                self._folder, self.events, reason=verdict.reason, code=verdict.code, now=time.time()
            )
            _write(self._folder.failure, text)
            return text

        with suppress(TimeoutError):
            async with asyncio.timeout(_REPORT):
                return await asyncio.wrap_future(self._thread.submit(report))
        return ""

    def concluded(self, verdict: Finish, by_user: bool) -> None:
        """The supervisors end. by_user: a user has stopped the run."""
        self._note(
            history.Verdict(
                time=time.time(),
                attempt=self.attempt,
                verdict=verdict.verdict,
                code=verdict.code,
                reason=verdict.reason[:_LONGEST],
                by_user=by_user,
            )
        )

    def forget_stop(self) -> None:
        """Remove the file that asked to stop, else the next start would stop at once."""
        self._thread.submit(_remove, self._folder.stop)

    async def finish(self) -> None:
        """Wait until all is written, for some seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH):
                await asyncio.wrap_future(self._thread.submit(records.finish))

    # Whenever something happens, and when nothing does.

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self._thread.submit(history.append, self._folder.supervision, event)

    def sign(self) -> None:
        """Show once a minute that the supervisors live."""
        if time.monotonic() - self._signed > _SIGN:
            self._signed = time.monotonic()
            self._thread.submit(history.touch, self._folder.supervision)


def _write(path: Path, text: str) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
