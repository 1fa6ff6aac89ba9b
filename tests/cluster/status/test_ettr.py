"""The effective training time ratio: what the trainer counts and what the supervisors saw agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.supervise import downtime, history
from tests.cluster.status.made import METRICS, NOW, MadeRun
from trainer.resilience.state import TrainerState

NODES = (history.NodeName(node="0", host="node1"),)
STEP = 2.0  # seconds


class Course:
    """A run that dies again and again, written down by both: by the trainer's own counters, and by
    events as the supervisors write them."""

    def __init__(self, every: int) -> None:
        self.every, self.now = every, NOW - 1e6
        self.events: list[history.Event] = []
        self.rows: list[dict[str, Any]] = []
        self.saved, self.step = TrainerState(), 0
        self.number, self.saved_step = 0, 0

    def attempt(self, setup: float, steps: int, *, dies: bool, down: float = 0.0) -> None:
        """setup: seconds from the start to the first step. down: from the end to the next start."""
        self.number += 1
        self.events.append(self._event(history.Start, nodes=NODES, ranks=8, checkpoint=None))
        self.now += setup
        state, self.step = self.saved.model_copy(deep=True), self.saved_step
        with mock.patch("time.time", return_value=self.now):
            state.started()
        self.events.append(self._event(history.Progress, step=self.step + 1, seconds=setup))
        self.rows = [row for row in self.rows if row["step"] < self.step]
        for _ in range(steps):
            self.now, self.step = self.now + STEP, self.step + 1
            state.train_seconds += STEP
            counted = state.model_dump(include={"train_seconds", "lost_seconds", "starts"})
            self.rows.append(METRICS | {"step": self.step - 1, "time": self.now} | counted)
            if self.step % self.every == 0:
                self._save(state)
        if dies:
            reason = "rank 3 ended by SIGKILL"
            self.events.append(self._event(history.Fault, kind="death", reason=reason))
            end = {"code": -9, "step": self.step, "checkpoint": None, "reason": reason}
            self.events.append(self._event(history.End, **end, failed=True))
            self.now += down

    def _save(self, state: TrainerState) -> None:
        state.seen = self.now
        self.saved, self.saved_step = state.model_copy(deep=True), self.step
        self.events.append(self._event(history.Checkpoint, step=self.step))

    def _event(self, of: Any, **values: Any) -> Any:
        return of(time=self.now, attempt=self.number, **values)


ATTEMPTS = st.lists(
    st.tuples(st.floats(1, 120), st.integers(1, 60), st.floats(0, 300)), min_size=1, max_size=6
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ATTEMPTS, st.integers(1, 30), st.integers(1, 200))
def test_metrics_and_supervisors_agree(
    tmp_path: Path, attempts: list[tuple[float, int, float]], every: int, last: int
) -> None:
    """But for what comes before the first checkpoint: the trainer has no memory of that time, and
    the supervisors have."""
    course = Course(every)
    course.attempt(0.0, every, dies=True)
    for setup, steps, down in attempts:
        course.attempt(setup, steps, dies=True, down=down)
    course.attempt(5.0, last, dies=False)
    run = MadeRun(tmp_path / "run")
    run.lines("metrics.jsonl", course.rows)
    run.supervised(*course.events)
    run.environment(total=10**6)
    run.write(
        "heartbeats/rank-00000.json", {"time": course.now, "section": "step", "step": course.step}
    )
    found = run.read(course.now)
    assert found.state == "running" and found.ettr is not None
    assert found.ettr.ratio == pytest.approx(downtime.times(course.events, course.now).ratio)
    assert found.starts == course.number


def test_both_count_a_run_that_stands_still(tmp_path: Path) -> None:
    course = Course(every=10)
    course.attempt(0.0, 100, dies=True)
    run = MadeRun(tmp_path / "run")
    run.lines("metrics.jsonl", course.rows)
    run.supervised(*course.events)
    later = course.now + 200  # and the supervisors have not started it again
    found = run.read(later)
    assert found.state == "restarting" and found.ettr is not None
    assert found.ettr.ratio == pytest.approx(1 / 2)
    assert downtime.times(course.events, later).ratio == pytest.approx(1 / 2)
