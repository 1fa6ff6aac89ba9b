"""Training of the VQ tokenizer: images in, losses of reconstruction and codebook out."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data_pipeline.streaming.image_loader import ImageBatch
from model.errors import ConfigError
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs
from trainer.objectives.footprint import Rehearsal
from trainer.objectives.images import ImageObjective, Listed, pixels_on, unfilled_pixels
from trainer.objectives.initial_weights import take_initial_weights


class TokenizerObjective(ImageObjective):
    """Trains the tokenizer together with what its losses need, and exports the tokenizer."""

    initial_section = "tokenizer"

    def __init__(
        self, config: RunConfig, fresh: bool = False, listed: Listed | None = None
    ) -> None:
        if config.precision != "fp32":
            raise ConfigError(
                "objective tokenizer trains in fp32 only (its codebook averages need it): "
                "set precision: fp32"
            )
        super().__init__(config, fresh, listed)
        tokenizer = VQTokenizer(config.tokenizer.sizes)
        training = TokenizerTraining(tokenizer, config.tokenizer_loss, config.seed)
        self.initial_weights = take_initial_weights(config, tokenizer, fresh)
        if self.initial_weights and fresh:
            training.keep_codebook(config.batch.micro)
        self.exported, self.network = tokenizer, training

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> Inputs:
        """images: (B, 3, H, W) float32 in [0, 1]."""
        return {"images": pixels_on(device, batch)}

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        return VQTokenizer(config.tokenizer.sizes), []

    @classmethod
    def one_image(cls, config: RunConfig, network: nn.Module) -> Tensor:
        """The image goes through encoder and decoder; the networks of the losses are left out."""
        tokenizer, size = cast(VQTokenizer, network), config.tokenizer.sizes.image_size
        reconstruction: Tensor = tokenizer.decoder(tokenizer.encoder(torch.empty(1, 3, size, size)))
        return reconstruction

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """With the networks of the losses. In eval mode, which leaves the codebook alone: what
        moves its codes depends on values, and takes little."""
        network = TokenizerTraining(
            VQTokenizer(config.tokenizer.sizes), config.tokenizer_loss, config.seed
        )
        network.batches = torch.zeros((), dtype=torch.int64, device="cpu")  # its value is asked for
        return Rehearsal(network.eval(), lambda: {"images": unfilled_pixels(config)})

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return (
            f"`addp evaluate {run} --suite held-out`, "
            f"`addp tokenize plan IMAGES OUT --tokenizer {network}`"
        )
