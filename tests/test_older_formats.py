"""What an earlier version left on disk opens and goes on: a run, a data set, results and exports.

`tests/fixtures/older/README.md` says what they are and how they were made.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.streaming.loader import TokenLoader
from model.errors import ConfigError
from model.official import import_official
from model.weights import fingerprint, load_network
from tests.patience import PATIENCE
from tests.trainer.evaluation.evaluating import codes, start
from tests.trainer.worlds import Ranks
from trainer.config.reading import load_config
from trainer.config.renamed import KEYS
from trainer.evaluation.generate import main as generate
from trainer.evaluation.reporting.records import read_run
from trainer.evaluation.trained import run_config
from trainer.pretrain import run_and_leave
from trainer.run_folder import RunFolder

OLDER = Path(__file__).parent / "fixtures" / "older"
MADE_AT = "/tmp/older"  # where the earlier version wrote them


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy that the test may change. The paths in its configuration lead to the copy."""
    folder = shutil.copytree(OLDER, tmp_path / "older")
    for name in ("addp.yaml", "run/config.resolved.yaml"):
        text = (folder / name).read_text().replace(MADE_AT, str(folder))
        (folder / name).write_text(text)
    return folder


def addp(*arguments: str | Path) -> str:
    """Run a command, which must end well, and return its output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def with_new_keys(run_file: Path) -> None:
    """Do what a person does whose run file was refused: write the new names of its keys."""
    text = run_file.read_text()
    for old, new in KEYS.items():
        section, key = old.split(".")
        text = re.sub(rf"(?m)^({section}: .*)\b{key}:", rf"\g<1>{new.split('.')[1]}:", text)
    run_file.write_text(text)


def test_a_run_goes_on_as_the_earlier_version_would_have(older: Path) -> None:
    """The same losses: weights, optimizer state, moving average, order of the data and masks."""
    with_new_keys(older / "addp.yaml")
    arguments = ["--config", str(older / "addp.yaml"), "log_every=1"]
    outcome = Ranks(run_and_leave, arguments, 1, older / "log").wait()
    assert outcome.codes == [0], outcome.output
    assert "resumed at step 8 of 40" in outcome.output
    folder = RunFolder(older / "run")
    assert folder.is_done and folder.network.is_file() and folder.ema.is_file()
    losses = {row["step"]: row["loss"] for row in folder.read_metrics()}
    expected = {int(s): loss for s, loss in json.loads((OLDER / "losses.json").read_text()).items()}
    assert {step: losses[step] for step in expected} == pytest.approx(expected, rel=1e-5)
    assert set(range(8, 40)) <= losses.keys() and 4 in losses  # and the lines of before stay
    assert [row["event"] for row in folder.read_incidents()] == ["stopped"]


def test_its_configuration_has_the_new_keys(older: Path) -> None:
    config = run_config(str(older / "run"))
    assert config.data.images == str(older / "images")
    assert (config.data.retry_seconds, config.checkpoint.retry_seconds) == (30, 20)
    health = config.health
    skipped = (health.extra_skip_steps, health.max_rewinds, health.max_nonfinite_steps)
    assert skipped == (2, 1, 7)


def test_its_run_file_is_refused_with_the_new_keys(older: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(older / "addp.yaml")
    told = [f"{old} is called {new} now" for old, new in list(KEYS.items())[:5]]
    assert sum(line in str(refused.value) for line in told) >= 4 and "1 more" in str(refused.value)
    with_new_keys(older / "addp.yaml")
    assert load_config(older / "addp.yaml").health.max_nonfinite_steps == 7


def test_its_check_finds_the_checkpoint(older: Path) -> None:
    with_new_keys(older / "addp.yaml")
    assert "goes on at step 8 of 40" in addp("check", older / "addp.yaml", "--gpus", "1")
    assert "valid" in addp("checkpoints", older / "run", "verify")


@pytest.mark.parametrize(
    "options",
    [
        ("--suite", "knn,linear", "--images", "images"),
        ("--suite", "samples", "--weights", "ema", "--count", "4", "--batch", "4", "--steps", "2"),
    ],
)
def test_results_stand(options: tuple[str, ...], older: Path) -> None:
    """Nothing is measured again, and the table shows what was found."""
    before, log = content(older / "run" / "evaluation"), older / "log"
    words = [str(older / "images") if word == "images" else word for word in options]
    assert codes(start(older / "run", log, *words)) == [0], log.read_text()
    assert "step 8: " not in log.read_text()  # no benchmark ran
    if "--images" in options:
        assert {"0.4545", "0.3636"} <= set(log.read_text().split())
    assert content(older / "run" / "evaluation") == before


def test_a_report_shows_the_run_and_its_results(older: Path) -> None:
    record = read_run(str(older / "run"))
    assert not record.left_out and len(record.results) == 3
    assert record.setting("health", "max_nonfinite_steps") == 7
    assert record.setting("data", "images") == str(older / "images")
    assert [len(result.images) for result in record.results if result.weights == "ema"] == [3]
    out = older / "report.html"
    command = [sys.executable, "-m", "trainer.evaluation.report", older / "run", "--out", out]
    subprocess.run(command, check=True, timeout=PATIENCE)
    page = out.read_text()
    assert "45.5" in page and "36.4" in page and "images that were classified" in page
    assert page.count("data:image/png") == 3 and 'id="left-out"' not in page


def test_a_set_of_samples_is_complete(older: Path) -> None:
    before = content(older / "samples")
    generate(run=str(older / "run"), count=4, batch=4, steps=2, into=older / "samples")
    assert content(older / "samples") == before
    with pytest.raises(ConfigError, match="another set of samples"):
        generate(run=str(older / "run"), count=4, batch=4, steps=3, into=older / "samples")


def test_a_data_set_is_verified_and_finished(older: Path) -> None:
    tokens, whole = older / "tokens", content(older / "tokens")
    assert "0 of them damaged" in addp("tokenize", "verify", tokens)
    addp("tokenize", "finalize", tokens)
    for name in ("dataset.json", "tokens-000001.tar", "parts/000001.json"):
        (tokens / name).unlink()
    assert "1 of 2" in addp("tokenize", "status", tokens)
    weights = ("--tokenizer", older / "tokenizer.safetensors", "--threads", "1")
    addp("tokenize", "run", tokens, *weights, "--source", older / "images", "--finalize")
    assert content(tokens) == whole


def test_the_same_images_give_the_same_plan(older: Path) -> None:
    before = (older / "tokens" / "plan.json").read_bytes()
    weights = ("--tokenizer", older / "tokenizer.safetensors")
    recipe = ("--split", "train", "--held-out", "0.4", "--views", "1", "--rows", "8")
    addp("tokenize", "plan", older / "images", older / "tokens", *weights, *recipe)
    assert (older / "tokens" / "plan.json").read_bytes() == before


def test_a_data_set_streams(older: Path) -> None:
    manifest = read_manifest(older / "tokens")
    loader = TokenLoader(older / "tokens", global_batch=4, seed=0, tokenizer=manifest.tokenizer)
    try:
        assert loader.batch(0, 0, 4).ids.shape == (4, manifest.tokens)
    finally:
        loader.close()
    stated = json.loads((older / "tokens" / "dataset.json").read_text())["fingerprint"]
    assert manifest.fingerprint == stated


def test_exports_load(older: Path) -> None:
    """Both hold the network that the set of samples was made with."""
    known = json.loads((older / "samples" / "samples.json").read_text())
    native = load_network(older / "native" / "network.safetensors", "addp")
    networks, guesses = import_official(older / "official.safetensors")
    assert guesses == [] and fingerprint(native) == fingerprint(networks["addp"])
    assert fingerprint(native) == known["network"]
    assert fingerprint(networks["tokenizer"]) == known["tokenizer"]
    predictor = load_network(older / "predictor.safetensors", "predictor")
    assert fingerprint(networks["predictor"]) == fingerprint(predictor)
