"""Which checkpoint a run may go on from, by what its manifest says; that it does go on is test_resume.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from trainer.checkpoint import Manifest
from trainer.config import load_config
from trainer.restore import Expected, Restored, last_config
from trainer.run_folder import RunFolder
from trainer.start import take_up

FACTS: dict[str, Any] = {"network": {"dim": 32, "dropout": 0.1, "positions": "normal"}, "data": "abc", "seed": 0}


def manifest(config: dict[str, Any], facts: dict[str, Any] = FACTS, run: str = "mine", step: int = 8) -> Manifest:
    return Manifest(
        step=step, world_size=1, zero_stage=1, facts=facts, parameters={}, part="", kinds=[], applied=step, scaler={},
        skipped=[], progress={"seen": 1.0}, run=run, config=config,
    )  # fmt: skip


def config(*overrides: str) -> dict[str, Any]:
    return load_config(None, overrides).model_dump(mode="json")


def changed(found: Manifest, *overrides: str, before: dict[str, Any] | None = None) -> list[str]:
    expected = Expected(FACTS, "mine", load_config(None, overrides), before or {})
    return [change.key for change in expected.check(found, "step-00000008")]


def test_keys_that_changed() -> None:
    assert changed(manifest(config())) == []
    assert changed(manifest(config()), "log_every=5") == ["log_every"]
    with pytest.raises(ConfigError, match=r"0\.0001 -> 0\.2; .*add 'resume\.allow=\[log_every,optimizer\.base"):
        changed(manifest(config()), "optimizer.base_lr=0.2", "schedule.total=9", "resume.allow=[log_every]")
    assert changed(manifest(config()), "optimizer.base_lr=0.2", "resume.allow=[optimizer]") == ["optimizer.base_lr"]


def test_micro_batches_matter_where_something_is_drawn_or_averaged_over_one() -> None:
    """Elsewhere another division of the same batch is other rounding, and as free as another number of ranks."""
    plain = ("objective=mage", "predictor.sizes.dropout=0")
    assert changed(manifest(config(*plain)), *plain, "batch.micro=32") == ["batch.micro"]
    for overrides in (
        ("objective=mage",), ("objective=addp",), ("objective=tokenizer",), ("objective=classify",),
        (*plain, "data.tail=pad"), (*plain, "data.on_bad_shard=quarantine"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"batch\.micro: 64 -> 32\. .*add 'resume\.allow=\[batch\.micro\]'"):
            changed(manifest(config(*overrides)), *overrides, "batch.micro=32")
        assert changed(manifest(config(*overrides)), *overrides, "batch.micro=32", "resume.allow=[batch.micro]")


def test_what_was_allowed_once_stays_so_where_an_older_checkpoint_has_to_do() -> None:
    """The folder's last start had it already."""
    assert changed(manifest(config()), "seed=3", before=config("seed=3")) == ["seed"]
    with pytest.raises(ConfigError, match="seed: 0 -> 4"):
        changed(manifest(config()), "seed=4", before=config("seed=3"))


def test_manifests_of_earlier_versions_have_neither_run_nor_configuration() -> None:
    old = manifest({}, {**FACTS, "data": ""}, run="")  # nor did a tokenizer's say which pictures it was trained on
    assert changed(old, "seed=3") == []
    with pytest.raises(ConfigError, match="seed: 0 -> 3"):
        changed(old, "seed=3", before=config())


@pytest.mark.parametrize(
    ("facts", "run", "words"),
    [
        ({"network": {"dim": 64, "dropout": 0.1}}, "mine", "network: "), ({"data": "other"}, "mine", "data: "),
        ({}, "other", "run: checkpoint other, now mine"),
    ],
)  # fmt: skip
def test_another_run_s(facts: dict[str, Any], run: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"belongs to another run than the configured one.*{words}"):
        changed(manifest(config(), {**FACTS, **facts}, run))
    other_dropout = {**FACTS, "network": {"dim": 32, "dropout": 0.0, "positions": "sincos"}}
    assert changed(manifest(config(), other_dropout)) == []  # a matter of resume.allow


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match=r"has come to step 8, and schedule\.total gives it 4 steps"):
        take_up(folder, "mine", Restored(manifest({}), [], []), 4, 1, print)
    assert folder.read_identity() is None


def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert last_config(RunFolder(tmp_path)) == {}
    (tmp_path / "config.resolved.yaml").write_text("a: [")
    assert last_config(RunFolder(tmp_path)) == {}
