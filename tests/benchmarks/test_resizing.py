"""The measurement of what resizing keeps, on tiny networks that know nothing yet."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from benchmarks.resizing import cross_entropy, measured, with_fresh_positions
from model.config import Geometry, TransformerConfig
from model.positions import TABLES
from model.predictor import TokenPredictor
from model.vq import VQTokenizer


def test_a_row_of_each_size(images: Path, tokenizer: VQTokenizer) -> None:
    torch.manual_seed(1)
    sizes = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    predictor = TokenPredictor(Geometry.of(tokenizer.config), sizes).eval()
    fresh = with_fresh_positions(predictor).state_dict()
    for name, tensor in predictor.state_dict().items():
        assert torch.equal(fresh[name], tensor) == (name not in TABLES), name
    for size, tokens in ((16, 16), (8, 4), (24, 36)):
        row = measured(tokenizer, predictor, str(images), size, draws=1)
        assert (row["size"], row["tokens"]) == (size, tokens) and row["images"] > 5
        assert 0 < row["unigram"] <= math.log(16)
        guess = math.log(predictor.geometry.vocabulary)
        assert abs(row["interpolated"] - guess) < 1 and abs(row["fresh"] - guess) < 1
    with torch.inference_mode():
        losses = cross_entropy(predictor, torch.randint(0, 16, (3, 16)), draws=2)
    assert losses.shape == (3,) and bool(losses.isfinite().all())
