"""docs/status.md lists every key and every state, with the words of the code, and
docs/operations.md every alarm."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from cluster.status.prometheus import prometheus_text
from cluster.status.snapshot import (
    Checkpoint,
    Ettr,
    Incident,
    Metrics,
    Rank,
    Recovery,
    Snapshot,
    Start,
    State,
)
from tests.cluster.status.made import running

DOCS = Path(__file__).parents[3] / "docs"
PAGE = "\n".join((DOCS / name).read_text() for name in ("operations.md", "status.md"))


@pytest.mark.parametrize(
    "model", [Snapshot, Metrics, Checkpoint, Start, Ettr, Recovery, Incident, Rank]
)
def test_every_key_is_documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert f"| `{name}` | {field.description} |" in PAGE


def test_every_metric_is_documented(tmp_path: Path) -> None:
    text = prometheus_text(running(tmp_path / "run").read()).decode()
    for family in text_string_to_metric_families(text):
        assert f"| `{family.samples[0].name}` |" in PAGE and f"| {family.documentation} |" in PAGE


def test_every_state_and_alarm_is_documented() -> None:
    for state in get_args(State):
        assert f"| `{state}` |" in PAGE.replace("hung?", "hung")
    for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` |" in PAGE
