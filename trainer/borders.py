"""The borders between steps, where the ranks agree on what comes next.

No rank decides alone: one that stopped, saved or failed by itself would leave the others in an
exchange that is never answered. Each says what it knows, and all take the largest of each flag:

                    stop   waiting   writing   failed
        rank 0       1        0         0         0      SIGTERM came here
        rank 1       0        1         0         0      its data are not here yet
        rank 2       0        0         1         0      its file of a checkpoint is not written
                   ------------------------------------
        all ranks    1        1         1         0      so all save and stop

An agreement needs as long as messages need around all ranks, and no step waits for that: each
border begins an agreement on the step after the next one, and takes the result of the one that was
begun a border earlier.

    rank   border 7          step 7          border 8          step 8          border 9
            | begin: are the data of step 8 here?  | begin: of step 9?              |
            |                                      |                                |
            +------------- agreement ------------> take: yes, so take step 8        |
                                                   +------------- agreement ------> take ...

What a rank says at border 7 is true for good: data that are here stay here. So all ranks have the
data of a step before any of them begins it. If some rank has not, or nothing was begun a border
earlier, all ranks agree again and again until it has, or until the run has to end; none of them
leaves the border before. A stop or a failure thus ends the run at most one step later than it
was noticed, on all ranks alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, Protocol

from model.errors import ADDPError
from trainer.distributed.collectives import Agreement, Collectives, Flags
from trainer.prefetch import failure
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.stopping import StopRequest

_LOOK = 0.5  # seconds between two agreements while data are awaited


class Border(NamedTuple):
    """What the ranks have agreed on.

    error: why this rank cannot go on; None where it can. waited: seconds until all ranks had their
    data, or until the run had to end.
    """

    flags: Flags
    error: ADDPError | None
    waited: float

    @property
    def ends_run(self) -> bool:
        return self.flags.stop or self.flags.failed != 0


class Saves(Protocol):
    """What borders know of saves: see `trainer.checkpointing.saver.Saver`."""

    @property
    def writing(self) -> bool: ...

    @property
    def under_way(self) -> int | None: ...

    def commit(self) -> None: ...


class _Begun(NamedTuple):
    """An agreement that was begun at the last border.

    error: what this rank said of itself. save: the step of the save that was under way, as all
    ranks have it.
    """

    agreement: Agreement
    error: ADDPError | None
    save: int | None


class Borders:
    """This rank at the borders of a run. Every method is called on all ranks together.

    lost: the error of a thread that the run cannot do without; None while all are alive.
    """

    def __init__(
        self,
        collectives: Collectives,
        saves: Saves,
        stop: StopRequest,
        heartbeat: Heartbeat,
        lost: Callable[[], ADDPError | None],
    ) -> None:
        self._collectives, self._saves, self._stop = collectives, saves, stop
        self._heartbeat, self._lost = heartbeat, lost
        self._begun: _Begun | None = None

    def cross(self, step: int, batches: Future[Any], following: Future[Any] | None) -> Border:
        """Come to the border before a step. Returns once all ranks have its data, or the run has to
        end.

        batches: of the step. following: of the step after it; None where there is none.
        """
        started = time.perf_counter()
        self._heartbeat.beat("data", step)
        border = self._take() if self._begun else None
        if border is None or (border.flags.waiting and not border.ends_run):
            border = self._wait_for(step, batches)
        if not border.ends_run:
            self._begun = self._begin(following)
        return border._replace(waited=time.perf_counter() - started)

    def settle(self) -> None:
        """Drop what was begun at the last border, where no border follows it. A stop or a failure
        that was said there is said again at the next one, if there is one."""
        if self._begun:
            self._begun.agreement.result()
            self._begun = None

    def _begin(self, data: Future[Any] | None) -> _Begun:
        error = self._error(data)
        flags = Flags(
            stop=self._stop.cause() is not None,
            waiting=data is not None and not data.done(),
            writing=self._saves.writing,
            failed=error.exit_code if error else 0,
        )
        return _Begun(self._collectives.begin_to_agree(flags), error, self._saves.under_way)

    def _take(self) -> Border:
        """The result of what was begun at the last border."""
        assert self._begun is not None
        begun, self._begun = self._begun, None
        flags = begun.agreement.result()
        # A save that has begun since is written by nobody's word.
        if not flags.writing and begun.save == self._saves.under_way:
            self._saves.commit()
        return Border(flags, begun.error, 0.0)

    def _wait_for(self, step: int, batches: Future[Any]) -> Border:
        """Agree until all ranks have the data, or the run has to end."""
        while True:
            wait([batches], timeout=_LOOK)
            self._begun = self._begin(batches)
            border = self._take()
            if border.ends_run or not border.flags.waiting:
                return border
            # A store that is patiently tried again is no hang.
            self._heartbeat.beat("data", step)

    def _error(self, data: Future[Any] | None) -> ADDPError | None:
        return (failure(data) if data else None) or self._lost()
