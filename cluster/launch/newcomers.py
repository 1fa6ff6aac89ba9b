"""Hosts that come back while a run goes on without them.

Where a scheduler or a person starts a supervisor on such a host, it joins the others by itself.
Over ssh nobody does: whoever started the others stops the run, and starts it on all hosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.launch.hosts import Hosts
from cluster.launch.ssh import unreachable
from cluster.supervise.policy import Rules

_LOOK_SECONDS = 30.0  # between two questions to hosts that were gone


class Newcomers:
    """Looks during one start for hosts that were gone when it began.

    listed: all hosts. started: those that have a supervisor now.
    """

    def __init__(
        self,
        listed: Hosts,
        started: Hosts,
        rules: Rules,
        *,
        ask: Callable[[Sequence[str]], dict[str, str]] = unreachable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gone = [name for name in listed.names if name not in started.slots]
        self._there = len(started.slots)
        self._rules, self._ask, self._clock = rules, ask, clock
        # A start is worth its while first.
        self._next = clock() + rules.grow

    def came(self) -> list[str]:
        """Return the hosts that are back, if more nodes can train with them. Asks now and then."""
        if not self._gone or self._rules.most(self._there) == self._rules.nodes:
            return []
        if self._clock() < self._next:
            return []
        silent = self._ask(self._gone)
        self._next = self._clock() + _LOOK_SECONDS
        back = [name for name in self._gone if name not in silent]
        more = self._rules.most(self._there + len(back)) > self._rules.most(self._there)
        return back if more else []
