"""Tiny networks in a run folder, as a finished run leaves them."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.weights import save_network
from tests.conftest import fresh_tokenizer


def save_networks(run: Path) -> Path:
    """Write an ADDP network to a run folder, and beside that the frozen ones that its configuration
    names. Returns the run folder."""
    tokenizer = fresh_tokenizer()
    geometry, sizes = Geometry.of(tokenizer.config), TransformerConfig(size="tiny")  # type: ignore[call-arg]
    run.mkdir(parents=True)
    torch.manual_seed(0)
    save_network(ADDP(geometry, sizes), run / "network.safetensors")
    files = {kind: run.parent / f"frozen-{kind}.safetensors" for kind in ("tokenizer", "predictor")}
    save_network(tokenizer, files["tokenizer"])
    save_network(TokenPredictor(geometry, sizes), files["predictor"])
    config = {kind: {"weights": str(file)} for kind, file in files.items()}
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    return run
