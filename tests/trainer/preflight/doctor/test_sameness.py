"""What must be the same on all nodes."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.preflight.finding_states import state, text
from trainer.config.reading import load_config
from trainer.preflight.doctor.sameness import code_digest, configuration_digest, differences, facts

ONE = {"python": "3.11.7", "torch": "2.13.0", "code": "a1", "driver": "610", "GPUs": "8 x H100"}


def test_the_same() -> None:
    (found,) = differences([("a", ONE), ("b", ONE)])
    assert found.state == "ok" and "on all 2 nodes" in found.found


def test_what_differs() -> None:
    other = {**ONE, "python": "3.12.1", "driver": "590", "GPUs": "7 x H100"}
    found = list(differences([("a", ONE), ("b", other), ("c", ONE)]))
    failed = text(found, "FAILED")
    assert "python differs: 3.11.7 on a, c; 3.12.1 on b; use one environment" in failed
    assert "GPUs differs: 8 x H100 on a, c; 7 x H100 on b; leave the node out" in failed
    assert "driver differs" in text(found, "warning")
    assert state(found, "versions") == "FAILED"
    assert "code differs: a1 on a; missing on b" in text(
        differences([("a", ONE), ("b", {k: v for k, v in ONE.items() if k != "code"})]), "FAILED"
    )


def test_facts_of_this_machine() -> None:
    own = facts(None, ["H100", "H100"], "610")
    assert own["GPUs"] == "2 x H100" and own["configuration"] == "unreadable"
    assert own["code"] == code_digest() and len(own["code"]) == 8


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "a.py").write_text("1")
    before = code_digest(tmp_path)
    (tmp_path / "trainer" / "a.py").write_text("2")
    assert code_digest(tmp_path) != before
    one, other = (load_config(None, [f"batch.micro={n}"]) for n in (1, 2))
    elsewhere = load_config(None, ["batch.micro=1", "run=/elsewhere"])
    assert configuration_digest(one) == configuration_digest(elsewhere)
    assert configuration_digest(one) != configuration_digest(other)
