"""The study of samplers: how many steps a budget allows, and what the rows say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.samplers.__main__ import families, key_of, read_rows
from benchmarks.samplers.plot import draw
from benchmarks.samplers.settings import FAMILIES, setting
from benchmarks.samplers.summary import DISTANCE, best_of_each, mean, table
from model.errors import ConfigError


def test_a_family_is_options_that_exist() -> None:
    for options in FAMILIES.values():
        assert setting("f", options, 8).sampling.steps == 8
    with pytest.raises(ConfigError, match="schedule"):
        setting("f", "schedule=sideways", 8)


def test_families_are_chosen_by_name_or_made_of_options() -> None:
    assert families(None) == FAMILIES
    assert families(["guided, 2", "mine: top_p=0.8"]) == {
        "guided, 2": FAMILIES["guided, 2"],
        "mine": "top_p=0.8",
    }
    with pytest.raises(ConfigError, match="there are published"):
        families(["unknown"])


def row(family: str, seed: int, distance: float) -> dict[str, Any]:
    return {
        "family": family,
        "passes": 8,
        "seed": seed,
        DISTANCE: distance,
        "efficientnet_precision": 0.5,
        "efficientnet_recall": 0.25,
    }


def test_the_best_is_compared_seed_by_seed(tmp_path: Path) -> None:
    rows = [row("published", 0, 200.0), row("published", 1, 100.0)]
    rows += [row("mine", 0, 180.0), row("mine", 1, 90.0)]
    assert best_of_each(rows) == "8 passes: mine, -10 ± 0 % beside published"
    assert "| mine | 8 | 135 ± 45 | 0.5 ± 0 | 0.25 ± 0 |" in table(rows)
    draw(rows, "made up", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert math.isnan(mean([1.0]).error)


def test_rows_are_read_up_to_the_one_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read_rows(file) == []
    file.write_text('{"seed": 0}\n{"seed": 1}\n{"see')
    assert [row["seed"] for row in read_rows(file)] == [0, 1]
    assert file.read_text().endswith('{"seed": 1}\n')  # the next row begins a line
    file.write_text('{"seed": 0, "fid": 9.0}\n{"seed": 1}\n')  # of an earlier version
    both, one = read_rows(file)
    assert one["extractors"] == ["efficientnet-lite0"]
    assert both["extractors"] == ["efficientnet-lite0", "inception-v3"]
    whole: dict[str, Any] = dict.fromkeys(("seed", "samples", "batch", "network", "images"), 0)
    whole |= {"sampling": {"top_p": 0.8}, "extractors": one["extractors"]}
    assert key_of(whole) != key_of(whole | {"extractors": both["extractors"]})
    later = {"top_p": 0.8, "class_guidance": 1.0}  # an option that came later, at its default
    assert key_of(whole) == key_of(whole | {"sampling": later})
    assert key_of(whole) != key_of(whole | {"seed": 1}) and key_of(whole) == key_of(
        whole | {"load": 3}
    )
