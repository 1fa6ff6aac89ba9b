"""What a check has found, in a form that the console, JSON and a supervisor share. Imports no
torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

from model.errors import ADDPError

T = TypeVar("T")
State = Literal["ok", "warning", "FAILED"]
_ORDER: tuple[State, ...] = ("ok", "warning", "FAILED")


class Finding(NamedTuple):
    """One line of an answer.

    name: what was checked, such as "run folder". found: what is there, or what is wrong. todo: what
    to do about it; empty where all is well. shared: whether the fault lies in something that all
    nodes share, such as a full disk of the run folder. A start without this node would not help
    then, and the node is fit all the same.
    """

    name: str
    state: State
    found: str
    todo: str = ""
    shared: bool = False

    @property
    def text(self) -> str:
        """What was found and what to do, as one sentence."""
        return f"{self.found}; {self.todo}" if self.todo else self.found

    @property
    def makes_unfit(self) -> bool:
        """Whether nothing should be started on the node that this was found on."""
        return self.state == "FAILED" and not self.shared


def worst(states: Iterable[State]) -> State:
    """Return the worst of some states; "ok" where there are none."""
    return max(states, key=_ORDER.index, default="ok")


def finding_of(record: dict[str, Any]) -> Finding:
    """Return the finding that was written as JSON by `Finding._asdict`."""
    return Finding(**{name: record[name] for name in Finding._fields})


class TooSlow(Exception):
    """Something has not answered in time."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises.

    Raises TooSlow if that takes longer than `seconds`. The work goes on in a thread that nobody
    waits for: calls into a network file system whose server is gone cannot be interrupted.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TooSlow(f"no answer within {seconds:g} s")
    return results[0]


def guarded(
    name: str, check: Callable[[], Iterator[Finding]], seconds: float = 5.0
) -> list[Finding]:
    """Return the findings of a check, of which none is lost where the check itself fails.

    An error that was written for people says what is wrong, and a check that does not answer in
    time is a fault, too. A check that raises anything else could not look: that is a warning, and
    no fault of the machine.
    """
    found: list[Finding] = []

    def collect() -> list[Finding]:
        for finding in check():
            found.append(finding)
        return found

    try:
        return within(seconds, collect)
    except TooSlow as error:
        todo = "look for a mount, a driver or a name server that hangs"
        return [*found, Finding(name, "FAILED", str(error), todo)]
    except ADDPError as error:
        return [*found, Finding(name, "FAILED", str(error))]
    except Exception as error:  # noqa: BLE001 - whatever a machine's files hold, others are checked
        kind = type(error).__name__
        return [*found, Finding(name, "warning", f"could not be looked at: {kind}: {error}")]


def size(count: float) -> str:
    """Return a number of bytes in words: 1.5 GiB."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count:.0f} B"
