"""A run file and key=value stand in any order among the options, on each entry point that takes a
configuration."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from model.errors import ConfigError
from trainer.config.arguments import configured, parse_rank


@pytest.mark.parametrize(
    "words",
    list(itertools.permutations(["a=1", "--config FILE", "b=2", "--local_rank=0"])),
    ids=" ".join,
)
def test_every_order_of_a_rank_s_words(words: tuple[str, ...]) -> None:
    found = parse_rank("", " ".join(words).split())
    assert found == (Path("FILE"), [word for word in words if word in ("a=1", "b=2")])


def test_a_run_file_without_its_option(tmp_path: Path) -> None:
    file = tmp_path / "a=run.yaml"
    file.touch()
    for words in itertools.permutations(["a=1", str(file), "--local_rank=0"]):
        assert parse_rank("", words) == (file, ["a=1"])
    with pytest.raises(ConfigError, match="one run file only"):
        configured(file, [str(file)])
    with pytest.raises(ConfigError, match="neither a run file"):
        configured(None, ["x" * 10_000])


def test_a_file_that_only_some_ranks_see_is_not_looked_for_yet() -> None:
    """Ranks that end before they meet would leave the others waiting."""
    assert parse_rank("", ["--config", "nowhere.yaml"]) == (Path("nowhere.yaml"), [])
