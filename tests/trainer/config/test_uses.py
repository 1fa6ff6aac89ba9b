"""A key of the configuration that an objective does not use is refused where a user sets it, and
nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_pipeline.storage import LocalStore
from model.errors import ConfigError
from trainer.config.defaults import documented_defaults
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.config.uses import users
from trainer.evaluation.trained import run_config
from trainer.objectives.registry import OBJECTIVES


@pytest.mark.parametrize(
    ("objective", "override", "words"),
    [
        (
            "addp",
            "classifier.method=finetune",
            r"addp does not use classifier\.method \(used by classify\)",
        ),
        (
            "addp",
            "tokenizer_loss.ema_decay=0.9",
            r"tokenizer_loss\.ema_decay \(used by tokenizer\)",
        ),
        (
            "addp",
            "data.views.size=16",
            r"data\.views\.size \(used by tokenizer, pixels, classify\)",
        ),
        (
            "tokenizer",
            "label_smoothing=0.1",
            r"tokenizer does not use label_smoothing \(used by mage, addp, classify\)",
        ),
        ("tokenizer", "data.mixture={a: 1}", r"data\.mixture \(used by mage, addp\)"),
        ("tokenizer", "recompute_every=1", "recompute_every"),
        (
            "mage",
            "addp.sizes.size=tiny",
            r"mage does not use addp\.sizes \(used by addp, pixels, classify, segment, detect\)\. ",
        ),
        (
            "mage",
            "addp.weights=x",
            r"addp\.weights \(used by addp, pixels, classify, segment, detect\)",
        ),
        ("segment", "detector.window=7", r"segment does not use detector\.window \(used by detect"),
        (
            "classify",
            "predictor={weights: x, sizes: {dim: 96}}",
            r"predictor\.sizes \(used by mage, addp\); predictor\.weights",
        ),
        ("classify", "output_bias=zeros", "output_bias"),
    ],
)
def test_what_an_objective_does_not_use(objective: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, [f"objective={objective}", override])


def test_a_file_is_named_and_all_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective: tokenizer\noutput_bias: zeros\ndata: {tokens: a, held_out: 0.2}\n")
    with pytest.raises(
        ConfigError,
        match=r"run\.yaml: .*use data\.tokens \(used by mage, addp\); output_bias .*Leave them out",
    ):
        load_config(path)


def test_objectives_name_the_keys_that_they_use() -> None:
    """Or the sections. A key that none names is everybody's; a name that is no key is a mistake."""
    known = users(RunConfig)
    assert known["optimizer.clip"] == tuple(OBJECTIVES)
    assert known["augmentation.mixup"] == ("classify",)
    for name, entry in OBJECTIVES.items():
        for stated in entry.keys:
            assert any(f"{key}.".startswith(f"{stated}.") for key in known), (name, stated)
    text = documented_defaults()
    assert "\nclassifier:  # (used by classify)\n" in text
    assert (
        "label_smoothing: 0.1  # over the vocabulary, or over classes (used by mage, addp, "
        "classify)\n" in text
    )
    assert (
        "base_lr: 0.0001  # learning rate for a batch of 256; lr = base_lr * global_batch / 256\n"
        in text
    )


def test_what_a_run_wrote_down_can_start_another(tmp_path: Path) -> None:
    """It states every key, and means those that are not the defaults."""
    resolved = load_config(None, ["objective=mage", "predictor.sizes.size=tiny"]).model_dump(
        mode="json"
    )
    path = tmp_path / "config.resolved.yaml"
    path.write_text(yaml.safe_dump(resolved))
    assert load_config(path, ["seed=3"]).seed == 3
    with pytest.raises(
        ConfigError, match=r"mage does not use tokenizer_loss\.commitment \(used by tokenizer\)"
    ):
        load_config(path, ["tokenizer_loss.commitment=0.5"])


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They could set anything."""
    LocalStore(tmp_path).create(
        "config.resolved.yaml", b"objective: mage\nclassifier: {method: linear}\n"
    )
    assert run_config(str(tmp_path)).classifier.method == "linear"


def test_finished_runs_are_read_whatever_a_start_would_refuse(tmp_path: Path) -> None:
    """Earlier versions took a warm-up as long as the run, for one, and what was a folder may be a
    file by now."""
    (tmp_path / "file").touch()
    resolved = RunConfig().model_dump(mode="json") | {
        "precision": "fp16",
        "zero_stage": 0,
        "health": {"hang": 3000},
    }
    resolved["schedule"] |= {"total": 40, "warmup": 40}
    resolved["checkpoint"] |= {"upload": str(tmp_path / "file"), "every": 7, "permanent_every": 3}
    resolved["resume"] = {"allow": ["seed", "gone"]}
    text = yaml.safe_dump(resolved)
    LocalStore(tmp_path).create("config.resolved.yaml", text.encode())
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.resolved.yaml")
    found = run_config(str(tmp_path))
    assert (
        found.schedule.warmup == 40
        and found.model_dump(mode="json")["checkpoint"] == resolved["checkpoint"]
    )


def test_a_broken_record_of_a_run_is_named(tmp_path: Path) -> None:
    LocalStore(tmp_path).create("config.resolved.yaml", b"seed: [\n")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config\.resolved\.yaml, line "):
        run_config(str(tmp_path))
