from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_pipeline.storage import StorageError
from model.errors import ConfigError
from trainer.config import RunConfig, documented_defaults, load_config
from trainer.precision import MODES

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted(p for p in (ROOT / "configs").glob("*.yaml") if p.name != "defaults.yaml")


def test_order_of_precedence(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("batch: {micro: 8}\naddp: {sizes: {size: tiny, depth: 5}}\n")
    config = load_config(tmp_path / "run.yaml", ["batch.global_batch=64", "addp.sizes.heads=4", "seed=3"])
    assert (config.batch.micro, config.batch.global_batch, config.seed) == (8, 64, 3)
    assert (config.addp.sizes.depth, config.addp.sizes.heads, config.addp.sizes.dim) == (5, 4, 32)
    assert config.learning_rate == pytest.approx(1e-4 * 64 / 256)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch.microo=3", "unknown key batch.microo; the nearest known one is batch.micro"),
        ("optimiser.base_lr=1", "unknown key optimiser; the nearest known one is optimizer"),
        ("addp.sizes.deph=3", "unknown key addp.sizes.deph; the nearest known one is addp.sizes.depth"),
        ("batch.micro=many", "batch.micro: "),
        ("addp.sizes.size=huge", "no size 'huge'; there are base, large"),
        ("addp.sizes.dim=100", "no multiple of heads = 12"),
        ("seed", "write key=value"),
        ("zero_stage=0", "use zero_stage = 1, or fp32 or bf16-mixed"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert words in str(caught.value)


def test_precisions_that_train_in_a_zero_stage() -> None:
    """DeepSpeed's wrappers of whole networks in half precision are wrong without ZeRO; float32 weights need none."""
    for precision, mode in MODES.items():
        for stage in range(4):
            overrides = [f"precision={precision}", f"zero_stage={stage}"]
            if stage == 0 and precision in ("bf16", "fp16"):
                with pytest.raises(ConfigError, match="trains wrongly"):
                    load_config(None, overrides)
            else:
                load_config(None, overrides)
        assert mode.width == (2 if precision in ("bf16", "fp16") else 4)


@pytest.mark.parametrize(
    "override",
    ["data.tokens=s3://KEY:SECRET@b/x", "checkpoint.upload=s3:/KEY:SECRET@b", "data.mixture={gs://KEY:SECRET@b: 1}",
     "run=s3://SECRET/x"],
)  # fmt: skip
def test_places_that_are_none(override: str) -> None:
    """Before the configuration is written to the run folder."""
    with pytest.raises(StorageError, match=r"write s3://bucket/prefix|use a local folder or s3://") as caught:
        load_config(None, [override])
    assert "SECRET" not in str(caught.value)


def test_paths_are_absolute_once_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run's own copy of its configuration holds in every working directory."""
    monkeypatch.chdir(tmp_path)
    keys = "data.tokens data.pictures data.cache tokenizer.weights predictor.weights addp.weights checkpoint.upload run"
    config = load_config(None, [f"{key}=some/{key}" for key in keys.split()])
    mixed = load_config(None, ["data.mixture={one: 1, s3://bucket/two: 2}", "checkpoint.upload=s3://bucket/run"])
    monkeypatch.chdir("/")
    dumped = config.model_dump(mode="json")
    for key in keys.split():
        value = dumped
        for part in key.split("."):
            value = value[part]
        assert value == f"{tmp_path}/some/{key}"
    assert load_config(None, []).run == Path("/runs/unnamed")
    assert list(mixed.data.mixture) == [f"{tmp_path}/one", "s3://bucket/two"]
    assert mixed.checkpoint.upload == "s3://bucket/run"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(tmp_path / "none.yaml")
    for text in ("a: [", "- list"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: p.stem)
def test_run_files_load_and_say_how_to_run_them(path: Path) -> None:
    load_config(path)
    head = path.read_text()
    assert head.startswith("#") and "Command:" in head


def test_published_recipes() -> None:
    for size, epochs, dim in (("base", 1600, 768), ("large", 800, 1024)):
        config = load_config(ROOT / "configs" / f"{size}.yaml")
        assert config.schedule.total == epochs and config.schedule.warmup == 40 and config.addp.sizes.dim == dim
        assert config.batch.global_batch == 4096 and config.learning_rate == pytest.approx(1.6e-3)
        assert (config.mask_ratio_scope, config.precision) == ("micro", "bf16-mixed")
        assert config.optimizer.betas == (0.9, 0.95) and config.optimizer.clip == 3.0 and config.geometry.tokens == 256


def test_documented_defaults_are_complete_and_current() -> None:
    text = documented_defaults()
    assert (ROOT / "configs" / "defaults.yaml").read_text() == text
    assert RunConfig.model_validate(yaml.safe_load(text)) == RunConfig()


def test_a_resolved_configuration_loads_again(tmp_path: Path) -> None:
    config = load_config(None, ["addp.sizes.size=tiny", "data.tokens=/data"])
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(tmp_path / "resolved.yaml") == config
