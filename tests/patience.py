"""How long tests wait for what has to happen: nothing fails because it is slow, and nothing that
hangs is waited for without end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

# Seconds: far more than anything takes here, also on a slow machine that has other work to do. A
# program under test that could come to an end by itself within this time would prove nothing.
PATIENCE = 1800.0

T = TypeVar("T")


def until(
    happened: Callable[[], T | None],
    *,
    alive: Callable[[], object] = lambda: True,
    said: Callable[[], object] = lambda: "it did not happen",
    pause: float = 0.01,
) -> T:
    """Wait until `happened` returns something true, and return it.

    alive: whether it can still happen. said: called for what the failure says.
    pause: seconds between two looks; more where a look costs something.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        # Asked first: whoever is gone after this may have done it before.
        may_come = alive() and time.monotonic() < deadline
        if found := happened():
            return found
        assert may_come, said()
        time.sleep(pause)
