"""What differs between nodes. Real ones: test_doctor."""

from __future__ import annotations

from trainer.preflight.doctor.comparing import judge_rates


def test_a_gpu_that_is_slower_than_the_others() -> None:
    rates = {"a cuda:0": 600.0, "a cuda:1": 610.0, "b cuda:0": 590.0, "b cuda:1": 200.0}
    found = list(judge_rates(rates))
    assert len(found) == 1 and found[0].state == "warning"
    assert "b cuda:1 multiplies 200 times 10^12 a second, where 595 are usual" in found[0].found
    assert not list(judge_rates({"a cuda:0": 1.0}))
