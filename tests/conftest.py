"""What tests share: small real pictures, a tokenizer, token data sets. No GPU, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data_pipeline.pictures import class_folders
from data_pipeline.tokenize import tokenize
from data_pipeline.views import ViewRecipe
from model.config import TokenizerConfig
from model.vq import VQTokenizer
from model.weights import save_network

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def schedules() -> dict[str, Any]:
    return json.loads((FIXTURES / "schedules.json").read_text())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40 drawn shapes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for shape in ("ellipse", "rectangle", "line"):
        (root / shape).mkdir()
        for i in range(40):
            image = Image.new("RGB", (24, 20), "white")
            box = [*rng.integers(0, 8, 2), *rng.integers(12, 19, 2)]
            color = tuple(int(c) for c in rng.integers(0, 255, 3))
            getattr(ImageDraw.Draw(image), shape)([int(v) for v in box], fill=color)
            image.save(root / shape / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    network = VQTokenizer(TokenizerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    torch.nn.init.normal_(network.codebook, std=0.5)
    return network


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tokenizer.safetensors"
    save_network(tokenizer, path)
    return path


@pytest.fixture(scope="session")
def tokens(pictures: Path, tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training data set of several shards, V = 3."""
    out = tmp_path_factory.mktemp("tokens") / "train"
    tokenize(class_folders(pictures, "train"), out, tokenizer, ViewRecipe(size=16, views=3), rows=32)
    return out


@pytest.fixture(scope="session")
def held_out_tokens(pictures: Path, tokenizer: VQTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "val"
    tokenize(class_folders(pictures, "val"), out, tokenizer, ViewRecipe.center(16))
    return out
