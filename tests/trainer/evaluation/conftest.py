from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ConditionalConfig, Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import save_network
from tests.trainer.worlds import finish

CLASSES = ("ellipse", "line", "rectangle")  # of the drawn images


def addp_options(
    folder: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tokens: Path,
    classes: tuple[str, ...] = (),
) -> list[str]:
    """The configuration of a tiny ADDP run, whose predictor is made in the folder. classes: those
    that the predictor knows."""
    file = folder / "predictor.safetensors"
    tiny = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    sizes = ConditionalConfig(**tiny.model_dump(), classes=classes) if classes else tiny
    save_network(TokenPredictor(Geometry.of(tokenizer.config), sizes), file)
    return [
        "objective=addp",
        "addp.sizes.size=tiny",
        "tokenizer.sizes.size=tiny",
        "precision=fp32",
        "ema_decay=0.9",
        "predictor.sizes.size=tiny",
        f"tokenizer.weights={tokenizer_file}",
        f"data.tokens={tokens}",
        f"predictor.weights={file}",
    ]


@pytest.fixture(scope="session")
def run(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished ADDP run with the checkpoints of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("evaluated")
    finish(folder / "run", *addp_options(folder, tokenizer, tokenizer_file, tokens))
    return folder / "run"


@pytest.fixture(scope="session")
def conditional_run(
    tokens: Path,
    tokenizer: VQTokenizer,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run that learned the classes of its images: ellipse, line, rectangle."""
    folder = tmp_path_factory.mktemp("conditional")
    options = addp_options(folder, tokenizer, tokenizer_file, tokens, CLASSES)
    finish(folder / "run", *options, "condition=classes", "condition_dropout=0.3")
    return folder / "run"
