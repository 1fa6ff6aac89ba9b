"""Training of the VQ tokenizer: images in, losses of reconstruction and codebook out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from data_pipeline.streaming.image_loader import ImageBatch
from model.errors import ConfigError
from model.shapes import shapes_only
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs
from trainer.objectives.counting import Operations, training_flops
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import ImageObjective, Listed, pixels_on
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
    def counted_flops(cls, config: RunConfig) -> Operations:
        """Of encoder and decoder. The networks of the losses are left out."""
        size = config.tokenizer.sizes.image_size
        with shapes_only():
            tokenizer, image = VQTokenizer(config.tokenizer.sizes), torch.empty(1, 3, size, size)
        return Operations(training_flops(lambda: tokenizer.decoder(tokenizer.encoder(image))), 0)

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        """With the networks of the losses. In eval mode, which leaves the codebook alone: what
        moves its codes depends on values, and takes little."""
        network = TokenizerTraining(
            VQTokenizer(config.tokenizer.sizes), config.tokenizer_loss, config.seed
        )
        network.batches = torch.zeros((), dtype=torch.int64, device="cpu")  # its value is asked for
        return Rehearsal(network.eval(), lambda batch: {"images": pixels_on(META, batch)})

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return (
            f"`addp evaluate {run} --suite held-out`, "
            f"`addp tokenize plan IMAGES OUT --tokenizer {network}`"
        )
