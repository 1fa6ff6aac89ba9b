"""What ranks agree on between steps, whatever is late, fails or is asked for, and wherever: real
ranks over gloo, with data and files that come as a script says."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from model.errors import DataError
from tests.trainer.worlds import Ranks
from trainer import borders as module
from trainer.borders import Border, Borders
from trainer.distributed.collectives import Collectives, Flags
from trainer.distributed.meeting import join_ranks
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.stopping import StopCause, StopRequest
from trainer.run_folder import RunFolder

RANKS, STEPS, CASES = 3, 8, 40
EARLY, LATE, AWAITED = range(3)  # data come a border early, just in time, or are waited for


class Script(NamedTuple):
    """One case. comes: when the data of each step come, by rank. fails, stops: (rank, step) at
    which data fail, or before which it is asked to stop. writes: over how many borders each rank
    writes the save that begins after a step."""

    comes: list[list[int]]
    fails: tuple[int, int] | None
    stops: tuple[int, int] | None
    writes: dict[int, list[int]]

    @classmethod
    def of(cls, case: int) -> Script:
        chance = random.Random(case)
        ways = [EARLY] if case % 4 == 0 else [EARLY, EARLY, EARLY, LATE, AWAITED]

        def somewhere() -> tuple[int, int] | None:
            return (
                (chance.randrange(RANKS), chance.randrange(STEPS))
                if chance.random() < 0.4
                else None
            )

        return cls(
            [chance.choices(ways, k=STEPS) for _ in range(RANKS)],
            somewhere(),
            somewhere(),
            {step: chance.choices(range(4), k=RANKS) for step in chance.sample(range(STEPS), 3)},
        )


class Files:
    """The saves of a rank. A commit is an exchange of all ranks, as a real one is."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self.under_way: int | None = None
        self.left = 0
        self.committed: list[int] = []

    @property
    def writing(self) -> bool:
        return self.under_way is not None and self.left > 0

    def commit(self) -> None:
        if self.under_way is not None:
            assert not self.writing
            assert self._collectives.all_gather(self.under_way) == [self.under_way] * RANKS
            self.committed.append(self.under_way)
            self.under_way = None


class Ended(NamedTuple):
    step: int
    flags: Flags | None
    failed_here: bool
    committed: list[int]


def act(script: Script, rank: int, collectives: Collectives, folder: RunFolder) -> Ended:
    """This rank's run. It fails where the ranks are not in the same step."""
    data: list[Future[int]] = [Future() for _ in range(STEPS)]
    files, stop = Files(collectives), StopRequest(folder)
    borders = Borders(collectives, files, stop, Heartbeat(folder, rank, 0), lambda: None)

    def come(step: int) -> None:
        if script.fails == (rank, step):
            data[step].set_exception(DataError(f"step {step}"))
        else:
            data[step].set_result(step)

    def bring(step: int, way: int) -> None:
        if step < STEPS and script.comes[rank][step] == way:
            if way == AWAITED:
                threading.Timer(0.02, come, [step]).start()
            else:
                come(step)

    bring(0, EARLY)
    border: Border | None = None
    for step in range(STEPS):
        bring(step + 1, EARLY)
        bring(step, LATE)
        bring(step, AWAITED)
        if script.stops == (rank, step):
            stop.ask(StopCause("signal", "asked"))
        files.left -= 1
        border = borders.cross(step, data[step], data[step + 1] if step + 1 < STEPS else None)
        if border.ends_run:
            return Ended(step, border.flags, border.error is not None, files.committed)
        assert data[step].result() == step
        assert collectives.mean([step]) == [step]  # in place of the gradients
        if step in script.writes and files.under_way is None:
            files.under_way, files.left = step, script.writes[step][rank]
    borders.settle()
    return Ended(STEPS, None, False, files.committed)


def check(script: Script, ended: list[Ended]) -> None:
    """What all ranks came to, by rank."""
    assert len({(each.step, each.flags, tuple(each.committed)) for each in ended}) == 1, ended
    step, flags = ended[0].step, ended[0].flags
    fails = script.fails[1] if script.fails else STEPS
    stops = script.stops[1] if script.stops else STEPS
    # A failure is said before the step that lacks the data; a stop takes one more step at most.
    assert step == min(fails, stops) or (step == stops + 1 and step <= fails), (script, ended)
    if flags is not None and flags.failed:
        assert script.fails is not None and step == fails and flags.failed == DataError.exit_code
        assert [each.failed_here for each in ended] == [r == script.fails[0] for r in range(RANKS)]
    if all(way == EARLY for ways in script.comes for way in ways):
        assert step in (fails, min(stops + 1, STEPS)) or (step == stops == 0), (script, ended)


def scripted(arguments: list[str]) -> int:
    rank = join_ranks(60.0).rank
    collectives, folder = Collectives(60.0), RunFolder(arguments[0])
    module._LOOK = 0.01
    for case in range(CASES):
        script = Script.of(case)
        check(script, collectives.all_gather(act(script, rank, collectives, folder)))
    ends = [Script.of(case) for case in range(CASES)]
    assert any(s.fails for s in ends) and any(s.stops for s in ends)
    return 0


def test_ranks_agree_whatever_is_late_fails_or_is_asked_for(tmp_path: Path) -> None:
    codes, output = Ranks(scripted, [str(tmp_path)], RANKS, tmp_path / "log").wait()
    assert codes == [0] * RANKS, output


def unanswered(arguments: list[str]) -> int:
    """Rank 1 answers once rank 0 has gone on."""
    rank = join_ranks(60.0).rank
    collectives, gone_on = Collectives(60.0), Path(arguments[0])
    while rank == 1 and not gone_on.exists():
        time.sleep(0.01)
    agreement = collectives.begin_to_agree(Flags(stop=rank == 1, failed=7 * (1 - rank)))
    gone_on.touch()
    assert collectives.mean([rank]) == [0.5]  # another exchange comes before the result
    assert agreement.result() == Flags(stop=True, failed=7)
    return 0


def test_a_rank_goes_on_before_the_others_answer(tmp_path: Path) -> None:
    codes, output = Ranks(unanswered, [str(tmp_path / "gone on")], 2, tmp_path / "log").wait()
    assert codes == [0, 0], output
