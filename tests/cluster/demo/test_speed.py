"""What the demo times before it promises anything."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cluster.demo.dense import DENSE_TRAININGS
from cluster.demo.speed import Speed, measure_speed
from cluster.demo.stages import TRAININGS, config_of
from cluster.demo.timed_ranks import time_steps
from model.errors import ConfigError
from tests.warm import CONTEXT


def _measure(images: Path, answers: Connection) -> None:
    configs = {name: config_of(name) for name in (*TRAININGS, *DENSE_TRAININGS)}
    answers.send(measure_speed(images, configs, configs["addp"], 2))


def test_this_machine_is_timed_with_two_ranks(images: Path) -> None:
    """In a process that has not computed yet, as the demo's own has not."""
    answers, theirs = CONTEXT.Pipe(duplex=False)
    timing = CONTEXT.Process(target=_measure, args=(images, theirs))
    timing.start()
    theirs.close()
    speed = answers.recv()
    timing.join()
    assert isinstance(speed, Speed) and list(speed.steps) == [*TRAININGS, *DENSE_TRAININGS]
    assert all(seconds > 0 for seconds in [*speed.steps.values(), *speed[1:]])


def test_ranks_among_which_a_batch_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split over 3 ranks"):
        time_steps([config_of("predictor")], 3)
