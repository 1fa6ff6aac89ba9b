"""Time-outs that stand the wrong way round are refused, with what to set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.timeouts import LOST_SECONDS, Timeouts
from cluster.supervise.limits import Limits
from model.errors import ConfigError
from trainer.config.schema import RunConfig

USUAL = Timeouts(step=30, hang=1800, collective=2400, grace=60, save=8, notice=90)


def test_the_defaults_stand_in_order() -> None:
    config, limits = RunConfig(), Limits()
    timeouts = Timeouts(limits.limit_step, config.health.hang, config.collective_timeout, grace=60)
    timeouts.check()
    assert [t.seconds for t in timeouts.finding_out()] == [1, 10, 30, 1800, 2400]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step": 5}, "lost node (10 s) must be shorter than silence in a step (5 s): set "
                      "--limit-step above 10"),
        ({"hang": 20}, "silence in a step (30 s) must be shorter than health.hang (20 s): set "
                       "health.hang above 30 or --limit-step below 20"),
        ({"collective": 1800}, "health.hang (1800 s) must be shorter than collective_timeout"),
        ({"save": 100}, "save (100 s) must be shorter than grace (60 s): set --grace above 100"),
        ({"notice": 60}, "grace (60 s) must be shorter than notice (60 s)"),
        ({"hang": 0, "collective": 20}, "silence in a step (30 s) must be shorter than collective"),
    ],
)  # fmt: skip
def test_an_inverted_order_is_refused(changed: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Timeouts(**{**vars(USUAL), **changed}).check()
    assert words in str(caught.value)


positive = st.floats(0.1, 1e5)


@given(positive, st.just(0.0) | positive, positive, positive, st.none() | positive)
def test_what_is_accepted_stands_in_order(
    step: float, hang: float, collective: float, grace: float, save: float | None
) -> None:
    timeouts = Timeouts(step, hang, collective, grace, save)
    ordered = LOST_SECONDS < step < collective and (save is None or save < grace)
    if hang:
        ordered = ordered and step < hang < collective
    assert (not timeouts.inverted()) == ordered
