"""Prometheus text, read back by Prometheus' own parser."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.status.prometheus import prometheus_text, write_textfile
from cluster.status.snapshot import Recovery, Snapshot
from tests.cluster.status.made import NOW, MadeRun, running

ALERTS = Path(__file__).parents[3] / "docs" / "alerts.yaml"


def parsed(snapshot: Snapshot) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples by name and labels; a sample that stands twice fails."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(prometheus_text(snapshot).decode()):
        assert family.documentation
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def of_run(snapshot: Snapshot, name: str, **labels: str) -> float:
    return parsed(snapshot)[f"addp_{name}"][tuple(sorted({"run": snapshot.run, **labels}.items()))]


def test_every_number_arrives(tmp_path: Path) -> None:
    run = running(tmp_path / "base-16", ranks=16)
    run.beat(3, "data", age=500)
    run.metrics(40, age=7, loss="nan", straggler=3)
    run.lines("incidents/rank-00003.jsonl", [{"time": NOW - 5, "rank": 3, "event": "hang"}])
    found = run.read()
    for name, value in (
        ("run_step", 40),
        ("run_planned_steps", 100),
        ("run_images_per_second", 1200),
        ("run_step_duration_seconds", 0.5),
        ("run_mfu_ratio", 0.41),
        ("run_device_memory_bytes", 61 * 2**30),
        ("run_metrics_timestamp_seconds", NOW - 7),
        ("run_starts_total", 2),
        ("run_ettr_ratio", 900 / 1007),
        ("run_silent_ranks", 1),
        ("run_straggler_rank", 3),
        ("run_read_timestamp_seconds", NOW),
    ):
        assert of_run(found, name) == pytest.approx(value), name
    assert math.isnan(of_run(found, "run_loss"))
    assert of_run(found, "run_state", state="hung") == 1
    assert of_run(found, "run_state", state="running") == 0
    assert of_run(found, "run_checkpoint_timestamp_seconds", place="folder") == NOW - 60
    assert of_run(found, "run_rank_duration_seconds", of="max") == 0.6
    assert of_run(found, "run_ranks", section="step") == 15
    assert of_run(found, "run_incidents_last_hour", event="hang") == 1
    assert of_run(found, "host_beat_timestamp_seconds", host="node1") == NOW - 500


def test_faults_and_the_newest_recovery(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    seen = {"faults": {"lost node": 2, "hang": 1}}
    recovery = Recovery(time=NOW - 90, kind="hang", noticed=31.0, stepped=12.5)
    found = run.read().model_copy(update=seen | {"recovery": recovery})
    assert of_run(found, "run_faults_total", kind="lost node") == 2
    assert of_run(found, "run_recovery_noticed_seconds") == 31
    assert of_run(found, "run_recovery_step_seconds") == 12.5


def test_names_carry_their_unit(tmp_path: Path) -> None:
    names = parsed(running(tmp_path / "run").read())
    assert all(re.fullmatch(r"addp_(run|host)_[a-z_]+", name) for name in names)
    for word, unit in (("timestamp", "seconds"), ("memory", "bytes"), ("ettr", "ratio")):
        assert all(name.endswith(unit) for name in names if word in name)


def test_labels_are_bounded_and_escaped(tmp_path: Path) -> None:
    run = running(tmp_path / ('a"b\\c' + "x" * 150))
    for rank in range(1500):
        run.beat(rank, host=f"node{rank}" + "y" * 300)
    run.environment(ranks=1500)
    run.lines(
        "incidents/rank-00000.jsonl",
        [{"time": NOW, "rank": 0, "event": f'e{i}\n"}} 1\nfake 2'} for i in range(90)],
    )
    found = parsed(run.read())
    assert "fake" not in found
    assert len(found["addp_host_beat_timestamp_seconds"]) == 1024
    assert len(found["addp_run_incidents_last_hour"]) == 21
    for samples in found.values():
        for labels in samples:
            for name, value in labels:
                assert len(value) <= (1000 if name == "place" else 100)


def test_a_run_without_anything_is_valid_text(tmp_path: Path) -> None:
    found = MadeRun(tmp_path / "run").read()
    assert of_run(found, "run_state", state="new") == 1
    assert "addp_run_step" not in parsed(found)


def test_a_textfile_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "metrics" / "addp.prom"
    snapshot = running(tmp_path / "run").read()
    for _ in range(2):
        write_textfile(target, snapshot)
    assert target.read_bytes() == prometheus_text(snapshot)
    assert target.stat().st_mode & 0o044  # node_exporter is another user
    assert [path.name for path in target.parent.iterdir()] == ["addp.prom"]


def test_alerts_use_names_that_exist(tmp_path: Path) -> None:
    run = running(tmp_path / "run")
    run.metrics(40, straggler=1)
    run.supervised()
    snapshot = run.read().model_copy(
        update={"failures_without_progress": 1, "copied": run.read().checkpoint, "code": 1}
    )
    known = parsed(snapshot)
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 8
    for rule in rules:
        used = set(re.findall(r"\baddp_[a-z_]+", rule["expr"]))
        assert used <= known.keys(), rule["alert"]
        states = "|".join(re.findall(r'state=~?"([^"]+)"', rule["expr"])).split("|")
        known_states = {dict(labels)["state"] for labels in known["addp_run_state"]}
        assert set(states) <= known_states | {""}
        assert {"summary", "description"} <= rule["annotations"].keys()
