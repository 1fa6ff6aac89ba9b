"""Training of the token predictor (MAGE, arXiv 2211.09117): tokens in, the loss of predicting the
masked ones out."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.masking import DROPPED, MageMasks, mage_masks
from model.predictor import TokenPredictor
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs, Objective
from trainer.objectives.counting import mean_visible
from trainer.objectives.footprint import Rehearsal
from trainer.objectives.initial_weights import take_initial_weights, without_values
from trainer.objectives.tokens import TokenBatch, TokenObjective


class MageObjective(TokenObjective):
    """Trains a network that ADDP takes as its frozen predictor."""

    initial_section = "predictor"

    def __init__(self, config: RunConfig, fresh: bool = False) -> None:
        super().__init__(config, fresh)
        network = TokenPredictor(config.geometry, config.predictor.sizes)
        self.start_output_bias(network.mlm_layer.bias)
        self.initial_weights = take_initial_weights(config, network, fresh)
        self.exported = self.network = network
        self.frozen = {"tokenizer": self.loader.manifest.tokenizer}

    def draw_masks(self, draw: int, start: int, count: int, length: int) -> MageMasks:
        return mage_masks(self.config.seed, draw, start, count, length)

    def inputs(self, batch: TokenBatch, step: int, device: torch.device) -> Inputs:
        """ids: (B, L) int64. mask: (B, L) bool, True where a token is to be predicted. kept: (B,
        M) int64, the positions that the encoder sees. masked_count: how many positions of an image
        are masked."""
        ids, masks, weights = batch.on(device)
        return {
            "ids": ids,
            "mask": masks.mask,
            "kept": masks.kept,
            "smoothing": self.config.label_smoothing,
            "weights": weights,
            "masked_count": masks.masked,
        }

    @classmethod
    def outlined(cls, config: RunConfig) -> Objective:
        with without_values():
            return cls(config)

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        return TokenPredictor(config.geometry, config.predictor.sizes), []

    @classmethod
    def one_image(cls, config: RunConfig, network: nn.Module) -> Tensor:
        tokens = config.geometry.tokens
        ids = torch.empty(1, tokens, dtype=torch.int64)
        mask = torch.empty(1, tokens, dtype=torch.bool)
        kept = torch.empty(1, tokens // 2, dtype=torch.int64)
        masked = tokens - mean_visible(config.geometry)
        return cast(TokenPredictor, network)(
            ids, mask, kept, config.label_smoothing, masked_count=masked
        )

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        micro, tokens = config.batch.micro, config.geometry.tokens

        def inputs() -> Inputs:
            return {
                "ids": torch.empty(micro, tokens, dtype=torch.int64),
                "mask": torch.empty(micro, tokens, dtype=torch.bool),
                "kept": torch.empty(micro, tokens - int(DROPPED * tokens), dtype=torch.int64),
                "smoothing": config.label_smoothing,
                "masked_count": tokens,
            }

        return Rehearsal(TokenPredictor(config.geometry, config.predictor.sizes), inputs)

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return (
            f"`addp evaluate {run} --suite held-out --tokens TOKENS`, an ADDP run with "
            f"predictor.weights={network}"
        )
