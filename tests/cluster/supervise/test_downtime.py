"""What failures cost, by the history of a run."""

from __future__ import annotations

from cluster.supervise.downtime import recoveries, times
from cluster.supervise.history import Checkpoint, Event, Progress, Verdict
from tests.cluster.supervise.events import end, fault, start


def test_recoveries_and_times() -> None:
    """One attempt is killed 5 s after its checkpoint; the next makes its first step 7 s later."""
    events: list[Event] = [
        start(1, 100),
        Progress(time=110, attempt=1, step=1, seconds=10),
        Checkpoint(time=130, attempt=1, step=4),
        fault(1, 135),
        end(1, 136, -9, 4),
        start(2, 137, 4),
        Progress(time=142, attempt=2, step=5, seconds=5),
        end(2, 200, 0, 12, failed=False),
        Verdict(time=200, attempt=2, verdict="done", code=0, reason="done"),
    ]
    (recovery,) = recoveries(events)
    assert (recovery.noticed, recovery.started, recovery.stepped) == (0.2, 2.0, 7.0)
    whole = times(events, now=1000.0)
    assert whole == (100.0, 20.0 + 58.0, 6.0)
    assert whole.down == 16.0 and whole.ratio == 0.78
    running = times(events[:7], now=150.0)
    assert running == (50.0, 20.0 + 8.0, 6.0)


def test_time_stands_still_while_a_run_is_stopped() -> None:
    stopped = Verdict(time=20, attempt=1, verdict="stopped", code=75, reason="")
    events: list[Event] = [start(1, 10), end(1, 20, 75, 4, failed=False), stopped, start(2, 500, 4)]
    assert times(events, now=505).wall == 15
    incomplete = Verdict(time=20, attempt=1, verdict="incomplete", code=81, reason="")
    assert times([events[0], incomplete, events[3]], now=505).wall == 495
