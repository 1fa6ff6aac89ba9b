"""Training of the token predictor (MAGE, arXiv 2211.09117): tokens in, the loss of predicting the
masked ones out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from model.masking import DROPPED, MageMasks, mage_masks
from model.predictor import TokenPredictor
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs, Objective
from trainer.objectives.footprint import Rehearsal
from trainer.objectives.initial_weights import take_initial_weights, without_values
from trainer.objectives.tokens import TokenBatch, TokenObjective


class MageObjective(TokenObjective):
    """Trains a network that ADDP takes as its frozen predictor."""

    initial_section = "predictor"

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        super().__init__(config, fresh)
        network = TokenPredictor(config.geometry, self.sizes)
        self.start_output_bias(network.mlm_layer.bias)
        self.initial_weights = take_initial_weights(config, network, fresh)
        self.exported = self.network = network
        self.frozen = {"tokenizer": self.loader.manifest.tokenizer}

    def draw_masks(self, draw: int, start: int, count: int, length: int) -> MageMasks:
        return mage_masks(self.config.seed, draw, start, count, length)

    def inputs(self, batch: TokenBatch, step: int, device: torch.device) -> Inputs:
        """ids: (B, L) int64. mask: (B, L) bool, True where a token is to be predicted. kept: (B,
        M) int64, the positions that the encoder sees. masked_count: how many positions of an image
        are masked. classes: what the network is told, (B,), or None."""
        return _inputs(self.config, batch.on(device))

    @classmethod
    def outlined(cls, config: RunConfig) -> Objective:
        with without_values():
            return cls(config)

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        return TokenPredictor(config.geometry, config.predictor.sizes), []

    @classmethod
    def blank_masks(cls, mask: Tensor, masked: int) -> MageMasks:
        rows, tokens = mask.shape
        return MageMasks(mask, torch.arange(int(DROPPED * tokens), tokens).repeat(rows, 1), masked)

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """Logits are made for all tokens where all are masked."""
        network = TokenPredictor(config.geometry, config.predictor.sizes)
        return Rehearsal(network, partial(_inputs, config), most_masked=1.0)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return (
            f"`addp evaluate {run} --suite held-out --tokens TOKENS`, an ADDP run with "
            f"predictor.weights={network}"
        )


def _inputs(config: RunConfig, batch: TokenBatch) -> Inputs:
    masks = batch.masks
    return {
        "ids": batch.ids,
        "mask": masks.mask,
        "kept": masks.kept,
        "smoothing": config.label_smoothing,
        "weights": batch.weights,
        "masked_count": masks.masked,
        "classes": batch.classes,
    }
