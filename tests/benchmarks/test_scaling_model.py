"""What the model of scaling makes of counted calls and measured steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scaling.counting import Call, Counted, Link, Traffic, traffic
from benchmarks.scaling.model import Cluster, Compute, measured_compute, predict
from benchmarks.scaling.plot import Curve

COMPUTE = Compute(image=0.004, fixed=0.01, optimizer=0.02)
CLUSTER = Cluster(Link(1e11, 1e-6), Link(2e11, 1e-5), 8, 0.0)
GRADIENTS = Traffic("all_reduce", False, 1, 1e9)


def test_calls_of_each_micro_batch_are_told_from_those_of_a_step() -> None:
    def step(micro_batches: int) -> Counted:
        calls = [Call("scatter", 100)] * 2 * micro_batches + [Call("gather", 30)]
        return Counted(1.0, 0.1, calls, 25, {})

    found = set(traffic(step(1), step(2)))
    assert found == {Traffic("scatter", True, 2, 200), Traffic("gather", False, 1, 30)}


def test_a_step_that_another_accumulation_cannot_explain_is_refused() -> None:
    learning = Counted(1.0, 0.1, [Call("broadcast", 8)] * 12, 25, {})
    with pytest.raises(ValueError, match="12 calls in a step, 6 in a longer one"):
        traffic(learning, learning._replace(calls=learning.calls[:6]))


def test_one_gpu_exchanges_nothing_and_two_send_the_gradients() -> None:
    alone = predict(COMPUTE, [GRADIENTS], 1, 64, 64, CLUSTER)
    assert alone.exposed == 0.0
    assert alone.seconds == pytest.approx(0.01 + 64 * 0.004 + 0.02)
    two = predict(COMPUTE, [GRADIENTS], 2, 64, 64, CLUSTER)
    assert (two.micro, two.accumulation) == (32, 1)
    assert two.exposed == pytest.approx(0.01, rel=0.01)  # 1 GB sent at 100 GB/s


def test_accumulation_repeats_what_each_micro_batch_sends() -> None:
    for repeated, times in ((False, 1), (True, 4)):
        sent = GRADIENTS._replace(repeated=repeated)
        step = predict(COMPUTE, [sent], 2, 512, 64, CLUSTER)
        assert step.accumulation == 4
        assert step.exposed == pytest.approx(0.01 * times, rel=0.01)


def test_overlap_hides_no_more_than_there_is_to_compute() -> None:
    whole = CLUSTER._replace(overlap=1.0)
    assert predict(COMPUTE, [GRADIENTS], 2, 64, 64, whole).exposed == 0.0
    slow = Cluster(Link(1e9, 0.0), Link(1e9, 0.0), 8, 1.0)
    step = predict(COMPUTE, [GRADIENTS], 2, 64, 64, slow)
    assert step.exposed == pytest.approx(1.0 - (0.01 + 32 * 0.004))


def test_a_larger_batch_scales_further() -> None:
    numbers = [2**k for k in range(11)]

    def end(images: int) -> int:
        steps = [predict(COMPUTE, [GRADIENTS], n, images, 128, CLUSTER) for n in numbers]
        return Curve("", images, steps).last_above(0.8)

    assert 1 < end(4096) < end(16384)


def test_compute_comes_from_two_micro_batches_or_one(tmp_path: Path) -> None:
    def rows(run: str, micro: int, step: float) -> list[dict[str, object]]:
        stages = {"step": step, "optimizer": 20.0, "rest": 4.0}
        return [{"run": run, "micro": micro}] + [
            {"run": run, "stage": stage, "ms": ms} for stage, ms in stages.items()
        ]

    file = tmp_path / "steps.jsonl"
    written = rows("small", 64, 288.0) + rows("large", 128, 544.0)
    file.write_text("\n".join(map(json.dumps, written)))
    compute, largest = measured_compute(file, ["small", "large"])
    assert largest == 128
    assert compute == pytest.approx((0.004, 0.012, 0.02))
    compute, _ = measured_compute(file, ["large"])
    assert compute == pytest.approx(((544 - 24) / 128 / 1000, 0.004, 0.02))
