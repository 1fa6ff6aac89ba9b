"""A run on two hosts, under `addp launch` and the real deepspeed launcher, gets over each fault by
itself: `benchmarks.faults`, once for each fault. docs/operations.md has the measured times."""

from __future__ import annotations

import pytest

from benchmarks.faults import Bench
from benchmarks.injections import FAULTS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("unattended"))


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_gets_over_it_by_itself(name: str, bench: Bench) -> None:
    outcome = bench.measure(name, 0)
    assert not outcome.problems, "\n".join(outcome.problems)
