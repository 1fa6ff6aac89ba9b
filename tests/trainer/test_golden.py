"""Loss paths that a refactoring must reproduce. `python -m tests.trainer.test_golden` writes them
anew, after a change that is meant to change them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from data_pipeline.images.view_recipe import ViewRecipe
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import save_network
from tests.conftest import draw_images, fresh_tokenizer
from tests.datasets import tokenize
from tests.trainer.comparing import losses
from tests.trainer.launching import MAGE
from tests.trainer.worlds import finish

FILE = Path(__file__).parents[1] / "fixtures" / "golden-losses.json"
ADDP = (
    "objective=addp",
    "addp.sizes.size=tiny",
    "tokenizer.sizes.size=tiny",
    "predictor.sizes.size=tiny",
)


def paths(folder: Path) -> dict[str, list[float]]:
    """Losses of twelve steps of each objective, two ranks, deterministic, from images drawn with a
    fixed seed."""
    import torch

    images = draw_images(folder / "images")
    tokenizer = fresh_tokenizer()
    assert isinstance(tokenizer, VQTokenizer) and isinstance(tokenizer.config, TokenizerConfig)
    save_network(tokenizer, folder / "tokenizer.safetensors")
    tokenize(
        images, folder / "tokens", tokenizer, ViewRecipe(size=16, views=3), rows=32, split="train"
    )
    torch.manual_seed(1)
    predictor = TokenPredictor(Geometry.of(tokenizer.config), TransformerConfig(size="tiny"))  # type: ignore[call-arg]
    save_network(predictor, folder / "predictor.safetensors")
    data, exact = f"data.tokens={folder / 'tokens'}", "deterministic=true"
    frozen = [f"{name}.weights={folder / name}.safetensors" for name in ("tokenizer", "predictor")]
    runs = {
        "mage": (*MAGE, data),
        "addp": (*ADDP, data, *frozen, "precision=fp32"),
        "addp-bf16": (*ADDP, data, *frozen, "precision=bf16"),
        "tokenizer": (
            "objective=tokenizer",
            "tokenizer.sizes.size=tiny",
            f"data.images={images}",
            "data.views.size=16",
            "precision=fp32",
            "tokenizer_loss.revive_every=3",
        ),
    }
    runs_losses = {}
    for name, options in runs.items():
        finish(folder / name, *options, exact)
        runs_losses[name] = losses(folder / name)
    return runs_losses


def test_losses_are_what_they_were(tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text())
    measured = paths(tmp_path)
    assert measured.keys() == expected.keys()
    for name, values in measured.items():
        tolerance = 2e-3 if "bf16" in name else 1e-4  # processors round differently
        assert values == pytest.approx(expected[name], rel=tolerance), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        FILE.write_text(json.dumps(paths(Path(scratch)), indent=1) + "\n")
    print(FILE)
    sys.exit(0)
