from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.storage import StorageError
from model.errors import ConfigError
from trainer.config.defaults import documented_defaults
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.engine.precision import MODES

ROOT = Path(__file__).parents[3]
RUN_FILES = sorted(
    p for p in (ROOT / "trainer/recipes").glob("*.yaml") if p.name != "defaults.yaml"
)


def test_order_of_precedence(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("batch: {micro: 8}\naddp: {sizes: {size: tiny, depth: 5}}\n")
    config = load_config(
        tmp_path / "run.yaml", ["batch.global_batch=64", "addp.sizes.heads=4", "seed=3"]
    )
    assert (config.batch.micro, config.batch.global_batch, config.seed) == (8, 64, 3)
    assert (config.addp.sizes.depth, config.addp.sizes.heads, config.addp.sizes.dim) == (5, 4, 32)
    assert config.learning_rate == pytest.approx(1e-4 * 64 / 256)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch.microo=3", "unknown key batch.microo; the nearest known one is batch.micro"),
        ("optimiser.base_lr=1", "unknown key optimiser; the nearest known one is optimizer"),
        (
            "addp.sizes.deph=3",
            "unknown key addp.sizes.deph; the nearest known one is addp.sizes.depth",
        ),
        ("batch.micro=many", "batch.micro: "),
        ("addp.sizes.size=huge", "no size 'huge'; there are base, large"),
        ("addp.sizes.dim=100", "no multiple of heads = 12"),
        ("seed", "write key=value"),
        ("zero_stage=0", "use zero_stage = 1, or fp32 or bf16-mixed"),
        ("schedule.shape=tenths", "milestones belong to shape = tenths, and that has one at least"),
        ("schedule.milestones=[50]", "milestones belong to shape = tenths"),
        ("schedule={shape: tenths, milestones: [90, 50]}", "milestones = [90.0, 50.0] must ascend"),
        ("schedule={shape: tenths, milestones: [30]}", "schedule.milestones = 30 must lie between"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert words in str(caught.value)


def test_precisions_that_train_in_a_zero_stage() -> None:
    """DeepSpeed's wrappers of whole networks in half precision are wrong without ZeRO; float32
    weights need none."""
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
    [
        "data.tokens=s3://KEY:SECRET@b/x",
        "checkpoint.upload=s3:/KEY:SECRET@b",
        "data.mixture={gs://KEY:SECRET@b: 1}",
        "run=s3://SECRET/x",
    ],
)
def test_places_that_are_none(override: str) -> None:
    """Before the configuration is written to the run folder."""
    with pytest.raises(
        StorageError, match=r"write s3://bucket/prefix|use a local folder or s3://"
    ) as caught:
        load_config(None, [override])
    assert "SECRET" not in str(caught.value)


def test_paths_are_absolute_once_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run's own copy of its configuration holds in every working directory."""
    monkeypatch.chdir(tmp_path)
    keys = (
        "data.tokens data.images data.cache tokenizer.weights predictor.weights addp.weights "
        "checkpoint.upload run"
    )
    config = load_config(None, [f"{key}=some/{key}" for key in keys.split()])
    mixed = load_config(
        None, ["data.mixture={one: 1, s3://bucket/two: 2}", "checkpoint.upload=s3://bucket/run"]
    )
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


def _numbers(
    schema: dict[str, Any], whole: dict[str, Any], key: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, JSON schema) of every number of the configuration, those in lists and mappings as
    well."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type") in ("integer", "number") and "enum" not in schema:
        yield key, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _numbers(inner, whole, f"{key}.{name}".strip("."))
    parts = [*schema.get("anyOf", []), *schema.get("prefixItems", [])]
    parts += [
        schema[name]
        for name in ("items", "additionalProperties")
        if isinstance(schema.get(name), dict)
    ]
    for inner in parts:
        yield from _numbers(inner, whole, key)


_SCHEMA = RunConfig.model_json_schema()
NUMBERS = dict(_numbers(_SCHEMA, _SCHEMA))


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_is_bounded(key: str) -> None:
    """So that none of them overflows, loops for ever or is true by mistake; the message has its
    name."""
    schema = NUMBERS[key]
    assert "minimum" in schema or "exclusiveMinimum" in schema, "no least value"
    assert "maximum" in schema or "exclusiveMaximum" in schema, "no largest value"
    for value in (
        ".inf",
        "-.inf",
        ".nan",
        "1e400",
        f"-1{'0' * 30}",
        f"1{'0' * 30}",
        "true",
        "word",
        "[[1]]",
        "{a: {}}",
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(None, [f"{key}={value}"])
        message = str(caught.value)
        assert key in message and len(message) < 1000 and "\n" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "schedule.warmup=1600",
            "schedule.warmup = 1600 epochs is not shorter than schedule.total",
        ),
        ("schedule.warmup=4000", "the learning rate would never fall"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("data.mixture={a: 1, b: -1}", "data.mixture."),
        ("data.mixture={a: 0, b: 0}", "data.mixture."),
        ("data.views.scale=[0.5, 0.2]", "scale = 0.5, 0.2: the lower end comes first"),
        ("data.views.scale=[0, 1]", "data.views.scale.0"),
        ("data.views.ratio=[-1, 1]", "data.views.ratio.0"),
        ("tokenizer.sizes={image_size: 8192, channel_multipliers: [1]}", "tokens an image"),
        ("addp.sizes.size=[base]", "no size ['base']"),
        ("run=", "run: it must be a path"),
        ("run=''", "run: it must be a path"),
        ('run="a\\0b"', "run: it must be a path"),
        ("data.tokens=' '", "data.tokens: it must be a path"),
        ("data.cache=[a]", "data.cache"),
        ("wandb=[a]", "wandb"),
        ("wandb=@x", "'wandb=@x', line 1"),
        ("run=[", "'run=[', line 1"),
        ("=x", "'=x' names no key"),
        (".=x", "names no key"),
        ("a.b.c.d=1", "unknown key a; the nearest known one is"),
        ("a b=1", "unknown key 'a b'"),
        (" seed=1", "' seed=1' names no key"),
        ("batch.micro.x=1", "batch.micro: "),
        ("x" * 100_000 + "=1", "the nearest known one is"),
        ("a." * 50_000 + "a=1", "names no key"),
        ("seed=" + "[" * 10_000, "nested deeper"),
        ("checkpoint.upload=runs/unnamed", "checkpoint.upload"),
        ("checkpoint.upload=runs/unnamed/checkpoints", "is the run's own folder"),
        ("data.images=runs", "is the folder of the images"),
    ],
    ids=lambda text: text[:40],
)
def test_nonsense_is_refused_by_its_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 1000


def test_many_mistakes_are_one_short_message(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("".join(f"key{i}: 1\n" for i in range(1000)))
    with pytest.raises(ConfigError, match=r"unknown key key0; .*; and 995 more$"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("key", ["run", "data.cache", "checkpoint.upload"])
def test_a_file_where_a_folder_is_meant(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"^{key} = {tmp_path}/file is a file; name a folder"):
        load_config(None, [f"{key}={tmp_path / 'file'}"])


def test_a_link_to_the_run_is_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(ConfigError, match=r"checkpoint\.upload"):
        load_config(
            None, [f"run={tmp_path / 'run'}", f"checkpoint.upload={tmp_path / 'link' / 'copy'}"]
        )
    load_config(None, [f"run={tmp_path / 'run'}", f"checkpoint.upload={tmp_path / 'run-copy'}"])


_ODD = st.sampled_from(
    [
        "",
        "null",
        "-1",
        "0",
        ".inf",
        ".nan",
        "1e309",
        "9" * 60,
        "[]",
        "{}",
        "[",
        "}",
        "'",
        ": ",
        "? ",
        "- ",
        "\t",
        "%",
        "@x",
        "&a",
        "*a",
        "!!python/name:os.system",
        "!!binary aGk=",
        "<<: {a: 1}",
        "2020-13-45",
        "0x" + "f" * 50,
        "~",
        "on",
        "\x00",
        "\ud800",
        "\u2028",
        "---",
        "...",
        "{" * 70,
        "\n  ",
        "true",
        "s3://",
        "gs://x",
        "1:99:99",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RUN_FILES), st.data())
def test_mutated_run_files_load_or_are_refused_in_one_line(path: Path, data: st.DataObject) -> None:
    """Tokens, lines and nesting of our own run files, changed at random."""
    words = [w for w in re.split(r"(\s+|[:,{}\[\]])", path.read_text()) if w]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(words) - 1))
        kind = data.draw(st.sampled_from(["replace", "insert", "drop", "double", "swap", "wrap"]))
        other = data.draw(st.integers(0, len(words) - 1))
        if kind == "replace":
            words[at] = data.draw(_ODD | st.text(max_size=8))
        elif kind == "insert":
            words.insert(at, data.draw(_ODD | st.text(max_size=8)))
        elif kind == "drop":
            del words[at : at + data.draw(st.integers(1, 5))]
        elif kind == "double":
            words[at:at] = words[at : at + data.draw(st.integers(1, 20))]
        elif kind == "swap":
            words[at], words[other] = words[other], words[at]
        else:
            words[at] = f"[{words[at]}]"
        words = words or ["seed: 1"]
    with tempfile.TemporaryDirectory() as folder:
        mutated = Path(folder) / "run.yaml"
        mutated.write_bytes("".join(words).encode(errors="surrogatepass"))
        try:
            found = load_config(mutated)
        except (ConfigError, StorageError) as error:
            message = str(error)
            assert "\n" not in message and len(message) < 1500
        else:
            assert isinstance(found, RunConfig) and found.learning_rate < float("inf")


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
        config = load_config(ROOT / "trainer/recipes" / f"{size}.yaml")
        assert (
            config.schedule.total == epochs
            and config.schedule.warmup == 40
            and config.addp.sizes.dim == dim
        )
        assert config.batch.global_batch == 4096 and config.learning_rate == pytest.approx(1.6e-3)
        assert (config.mask_ratio_scope, config.precision) == ("micro", "bf16-mixed")
        assert (
            config.optimizer.betas == (0.9, 0.95)
            and config.optimizer.clip == 3.0
            and config.geometry.tokens == 256
        )


@pytest.mark.parametrize("size", ["base", "large"])
def test_recipes_of_dense_transfer(size: str) -> None:
    """The figures of mmsegmentation's configs/mae and of detectron2's projects/ViTDet."""
    segment, detect = (
        load_config(ROOT / "trainer/recipes" / f"{data}-{size}.yaml") for data in ("ade20k", "coco")
    )
    for config, batch, decay, total, warmup in (
        (segment, 16, 0.05, 160_000, 1500),
        (detect, 64, 0.1, 184_375, 250),
    ):
        assert config.learning_rate == pytest.approx(1e-4)
        assert (config.batch.global_batch, config.optimizer.weight_decay) == (batch, decay)
        assert config.optimizer.betas == (0.9, 0.999) and config.optimizer.clip == 0
        assert (config.schedule.unit, config.schedule.total) == ("steps", total)
        assert config.schedule.warmup == warmup
    assert segment.schedule.shape == "linear"
    assert detect.schedule.milestones == (163_889, 177_546)


@pytest.mark.parametrize("name", ["base", "large", "mage-base", "mage-large"])
def test_published_recipes_say_what_batch_micro_is_part_of(name: str) -> None:
    head, _, keys = (
        (ROOT / "trainer/recipes" / f"{name}.yaml").read_text().partition("\nobjective:")
    )
    assert "mask_ratio_scope: micro" in keys and "precision: bf16-mixed" in keys
    assert (
        "a mask ratio for each micro batch" in head and "precision=bf16 takes less memory" in head
    )


def test_documented_defaults_are_complete_and_current() -> None:
    text = documented_defaults()
    assert (ROOT / "trainer/recipes" / "defaults.yaml").read_text() == text
    assert RunConfig.model_validate(yaml.safe_load(text)) == RunConfig()


def test_a_resolved_configuration_loads_again(tmp_path: Path) -> None:
    config = load_config(None, ["addp.sizes.size=tiny", "data.tokens=/data"])
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(tmp_path / "resolved.yaml") == config
