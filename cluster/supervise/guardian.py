"""The end of ranks whose supervisor is gone. A file that Python runs by itself, within a hundredth
of a second: it imports nothing of ours.

It leads the process group of a node's ranks, and hears its supervisor by a pipe:

    the pipe ends             the supervisor was killed: the whole group is killed, at once
    silence for so long       the supervisor is stopped, or hangs: the coordinator takes this node
                              for lost and may start its ranks elsewhere, so they are killed here
    silence for much longer   the supervisor is killed, too: its launcher sees that it has failed

While it lives, or is not waited for, no other process can get its number, so that a signal to the
group never reaches a stranger.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

_PASSED_TO_RANKS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def guard(lost: float, dead: float) -> None:
    """Wait for the supervisor's end. lost, dead: seconds of its silence."""
    for number in _PASSED_TO_RANKS:
        signal.signal(number, signal.SIG_IGN)
    supervisor, group = os.getppid(), os.getpgrp()
    assert group == os.getpid(), "it kills its group, and has to be its leader"
    while (heard := _listen(lost)) == "beat":
        pass
    if heard == "silence":
        with contextlib.suppress(OSError):
            os.setpgid(0, os.getpgid(supervisor))  # out of the group that is killed
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while heard != "end":
        heard = _listen(dead - lost)
        if heard == "silence" and os.getppid() == supervisor:
            os.kill(supervisor, signal.SIGKILL)


def _listen(seconds: float) -> str:
    """Return what the supervisor says: beat, end or silence."""
    ready, _, _ = select.select([0], [], [], seconds)
    if not ready:
        return "silence"
    return "beat" if os.read(0, 1 << 16) else "end"


if __name__ == "__main__":
    guard(float(sys.argv[1]), float(sys.argv[2]))
