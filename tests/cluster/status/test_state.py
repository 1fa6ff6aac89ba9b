"""States that only a store shows; those of folders are in test_read.py."""

from __future__ import annotations

from cluster.status.state import Evidence, Lock, judge

NOW = 1_900_000_000.0


def test_a_supervised_run_that_let_go_of_its_store_has_stopped_after_a_while() -> None:
    """It may also be between two attempts, and a store does not say which."""
    seen = Evidence(NOW, supervised=NOW - 60, begun=True, from_store=True)
    assert judge(seen).state == "restarting"
    seen = seen._replace(supervised=NOW - 240)
    assert judge(seen).state == "stopped"
    assert judge(seen._replace(from_store=False)).state == "restarting"


def test_a_run_that_died_still_holds_its_store() -> None:
    seen = Evidence(NOW, supervised=NOW - 240, begun=True, from_store=True)
    assert judge(seen._replace(lock=Lock("process 7 on node1", renewed=False))).state == "dead"
    assert judge(seen._replace(lock=Lock("process 7 on node1", renewed=True))).state == "running"
