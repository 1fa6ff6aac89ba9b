"""Whole runs of every objective, with the real engine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import load_network, save_network
from tests.trainer.comparing import cut_back, losses, same_end
from tests.trainer.launching import MAGE, train
from tests.trainer.worlds import finish, run_world
from trainer.run_folder import RunFolder


@pytest.fixture(scope="module")
def undisturbed(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under the real launcher."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = train(run, *MAGE, f"data.tokens={tokens}")
    assert code == 0, output
    return run


def test_a_run_leaves_what_it_promises(undisturbed: Path) -> None:
    folder = RunFolder(undisturbed)
    assert folder.is_done and json.loads((undisturbed / "done.json").read_text())["step"] == 12
    assert {p.name for p in folder.checkpoints.iterdir()} == {
        "published",
        "step-00000004",
        "step-00000008",
        "step-00000012",
    }
    assert isinstance(load_network(folder.network, "predictor"), TokenPredictor)
    rows = folder.read_metrics()
    assert len(rows) == 12 and all(
        math.isfinite(row["loss"]) and row["images_per_second"] > 0 for row in rows
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list(folder.tensorboard.iterdir()) and (undisturbed / "config.resolved.yaml").exists()
    assert json.loads((undisturbed / "environment.json").read_text())["world_size"] == 2
    start = json.loads((undisturbed / "start.json").read_text())
    assert list(start["parts"]) == [
        *("imports", "meeting", "networks", "data", "engine", "restore", "records"),
        *("first batch", "first step"),
    ]
    assert start["seconds"] == pytest.approx(sum(start["parts"].values()), abs=0.01)


def test_without_a_launcher_it_is_the_same_run(
    undisturbed: Path, tokens: Path, tmp_path: Path
) -> None:
    """What the other tests start is what the launcher starts."""
    finish(tmp_path / "run", *MAGE, f"data.tokens={tokens}")
    assert same_end(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_addp_trains(
    precision: str, tokens: Path, tokenizer: VQTokenizer, tokenizer_file: Path, tmp_path: Path
) -> None:
    geometry = Geometry.of(tokenizer.config)
    predictor = TokenPredictor(geometry, TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    save_network(predictor, tmp_path / "predictor.safetensors")
    finish(
        tmp_path / "addp",
        "objective=addp",
        "addp.sizes.size=tiny",
        "tokenizer.sizes.size=tiny",
        "predictor.sizes.size=tiny",
        f"tokenizer.weights={tokenizer_file}",
        f"data.tokens={tokens}",
        f"predictor.weights={tmp_path / 'predictor.safetensors'}",
        f"precision={precision}",
    )
    assert isinstance(load_network(tmp_path / "addp" / "network.safetensors", "addp"), ADDP)
    path = losses(tmp_path / "addp")
    assert path[-1] < path[0]
    manifest = json.loads(
        (tmp_path / "addp" / "checkpoints" / "step-00000012" / "manifest.json").read_text()
    )
    assert set(manifest["facts"]["frozen"]) == {"tokenizer", "predictor"}
    assert not any("tokenizer" in name for name in manifest["files"])


def test_the_tokenizer_trains_and_resumes_exactly(images: Path, tmp_path: Path) -> None:
    options = (
        "objective=tokenizer",
        "tokenizer.sizes.size=tiny",
        f"data.images={images}",
        "data.views.size=16",
        "precision=fp32",
        "tokenizer_loss.revive_every=3",
    )
    whole = tmp_path / "whole"
    finish(whole, *options)
    cut = cut_back(whole, tmp_path / "cut", 4)
    assert "resumed at step 4" in finish(cut, *options)
    assert same_end(whole, cut)


def test_mistakes_are_one_paragraph(
    undisturbed: Path, tokens: Path, tokenizer_file: Path, tmp_path: Path
) -> None:
    """Each with a non-zero exit, before any training. One process each: the messages are the
    same."""
    geometry = Geometry(image_size=16, patch_size=4, codebook_size=16)
    save_network(
        TokenPredictor(geometry, TransformerConfig(size="tiny")), tmp_path / "p.safetensors"
    )  # type: ignore[call-arg]
    torch.manual_seed(5)
    other = VQTokenizer(load_network(tokenizer_file, "tokenizer").config)  # type: ignore[arg-type]
    save_network(other, tmp_path / "other.safetensors")
    addp = (
        "objective=addp",
        "addp.sizes.size=tiny",
        "predictor.sizes.size=tiny",
        "tokenizer.sizes.size=tiny",
    )
    data = f"data.tokens={tokens}"
    cases = [
        ([*MAGE, data, "batch.micro=3"], "batch.micro would work with"),
        ([*MAGE, data, "precision=fp16"], "precision = fp16 needs a GPU"),
        ([*MAGE, "data.tokens=/nowhere"], "is no finished token data set"),
        ([*MAGE, data, "predictor.sizes.dim=64"], "belongs to another run"),
        (
            [*addp, data, "tokenizer.weights=/nowhere.safetensors"],
            "objective addp needs predictor.weights",
        ),
        (
            [
                *addp,
                data,
                f"tokenizer.weights={tmp_path / 'other.safetensors'}",
                f"predictor.weights={tmp_path / 'p.safetensors'}",
            ],
            "was made by another tokenizer",
        ),
    ]
    for overrides, words in cases:
        run = undisturbed if "another run" in words else tmp_path / "new"
        codes, output = run_world(run, *overrides, processes=2 if run == undisturbed else 1)
        assert set(codes) & {0, None} == set() and words in output, output
        assert "error: " in output and "Traceback" not in output
        assert not (tmp_path / "new" / "checkpoints").exists()
