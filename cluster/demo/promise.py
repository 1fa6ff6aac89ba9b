"""How long the demo will take on this machine, said at its start, and how long it took."""

from __future__ import annotations

import resource
import time
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

_console = Console(stderr=True)


class Spent(NamedTuple):
    """What a stage took. seconds: on the wall. cpu: of all processes together."""

    seconds: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        """Return the time now, and the CPU seconds of this process and of those that it started and
        that have ended."""
        whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        used = [resource.getrusage(who) for who in whose]
        return cls(time.monotonic(), sum(u.ru_utime + u.ru_stime for u in used))

    def since(self, before: Spent) -> Spent:
        """Return what was spent since an earlier `now`."""
        return Spent(self.seconds - before.seconds, self.cpu - before.cpu)


class Promise:
    """What each stage is to take, and what it took.

    promised: seconds by stage, of the stages that are not done.
    """

    def __init__(self, promised: dict[str, float]) -> None:
        self._promised = promised
        self._spent: dict[str, Spent] = {}

    def give(self) -> None:
        """Print what each stage will take, all together, and when the end will be."""
        seconds = sum(self._promised.values())
        end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        _console.print(
            f"On this machine, as busy as it is now, the demo will take {_minutes(seconds)}, "
            f"until {end}:"
        )
        for stage, part in self._promised.items():
            _console.print(f"  {_minutes(part):>12}  {stage}")

    def note(self, stage: str, spent: Spent) -> None:
        """Note what a stage took."""
        self._spent[stage] = spent

    def settle(self, whole: Spent) -> None:
        """Print what was promised beside what was taken. whole: since the promise, with what lies
        between the stages."""
        table = Table(box=None, pad_edge=False)
        for name in ("stage", "promised", "took", "CPU"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for stage, spent in self._spent.items():
            table.add_row(stage, _minutes(self._promised.get(stage, 0.0)), *map(_minutes, spent))
        promised = sum(self._promised.values())
        table.add_row("the whole demo", _minutes(promised), *map(_minutes, whole))
        _console.print(table)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds else ""
