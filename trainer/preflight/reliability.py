"""How much of its time a run trains on many GPUs, each of which may fail at any moment.

A model of four numbers, all in seconds:

    failure      the mean time between two failures of the whole run. Failures are independent, so
                 N GPUs fail N times as often as one, at moments that nothing foretells.
    stall        for which training waits at each checkpoint
    commit       from then until the checkpoint counts: a failure before that falls back to the one
                 before it
    down         from a failure until the run trains again: detection and restart

    save          save          save              failure
     |             |             |                   x
     |== interval =|s|= interval |s|=====............|...... down ......|=== interval =|s|
                     |-commit-|    |-commit-|
                                   ^ the work since here is lost

With a checkpoint after each `interval` of work, the share of the time in work that counts is

    ratio =  interval / failure  *  exp(-(commit + down) / failure)
             / expm1((interval + stall) / failure)

Between two failures lies a time of `failure` on average, and it is followed by one of
`failure * expm1(down / failure)`, since what fails may fail again while it starts. From a restart,
the first checkpoint counts if nothing fails for `interval + stall + commit`, and each further one
after another `interval + stall`: a geometric series. Without `commit` this is the model of Daly,
"A higher order estimate of the optimum checkpoint interval for restart dumps" (FGCS 22, 2006,
equation 20), whose first order is Young's of 1974: the best interval is sqrt(2 * stall * failure).

All functions are pure.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Mean time to failure of 1,024 GPUs, in hours: arXiv 2410.21680.
_HOURS, _GPUS = 7.9, 1024
MEAN_GPU_HOURS = _HOURS * _GPUS
_HALVINGS = 200
_LONGEST = 600.0  # of an exponent: exp of more is beyond a float


class Failures(NamedTuple):
    """How often a run fails, and what that costs. All in seconds, as the module says."""

    failure: float
    stall: float
    commit: float
    down: float


def mean_time_to_failure(gpu_hours: float, gpus: int) -> float:
    """Return the seconds between two failures of a run on so many GPUs.

    gpu_hours: after which one GPU, with its share of host and network, fails on average.
    """
    return gpu_hours * 3600 / gpus


def training_ratio(interval: float, failures: Failures) -> float:
    """Return the share of the time in work that counts (ETTR), from 0 to 1.

    interval: seconds of work between two checkpoints, above 0.
    """
    failure, stall, commit, down = failures
    waits, cycle = (commit + down) / failure, (interval + stall) / failure
    if waits + cycle > _LONGEST:
        return 0.0
    return interval / failure * math.exp(-waits) / math.expm1(cycle)


def best_interval(failures: Failures) -> float:
    """Return the seconds of work between two checkpoints at which the run trains most of its time.

    It does not depend on `commit` and `down`, which cost the same at any interval. Where a save
    costs nothing, it is 0.
    """
    failure, cost = failures.failure, failures.stall / failures.failure
    low, high = 0.0, 1.0  # in units of `failure`
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The derivative of the ratio has the sign of this, which falls.
        if -math.expm1(-middle - cost) > middle:
            low = middle
        else:
            high = middle
    return low * failure


def young_interval(failures: Failures) -> float:
    """Return Young's estimate of the best interval, which is close where failures are rare."""
    return math.sqrt(2 * failures.stall * failures.failure)


class Waste(NamedTuple):
    """The shares of the time that are lost, to the first order. saves: waiting for them. redone:
    work after the last checkpoint that counts. down: detection and restart."""

    saves: float
    redone: float
    down: float

    @property
    def total(self) -> float:
        """All that is lost."""
        return sum(self)


def waste(interval: float, failures: Failures) -> Waste:
    """Return where the time goes, to the first order: what `training_ratio` loses where failures
    are rare. A failure costs half an interval, on average, and a commit."""
    failure, stall, commit, down = failures
    return Waste(
        saves=stall / (interval + stall),
        redone=((interval + stall) / 2 + commit) / failure,
        down=down / failure,
    )
