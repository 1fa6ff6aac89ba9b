"""Pre-training on masked pixels (MAE): images in, the loss of the patches that the encoder did not
see out. It is what ADDP is compared with: the same network, data loader, optimizer and loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.streaming.image_loader import ImageBatch
from model.addp import ADDP
from model.device import staged
from model.errors import ConfigError
from model.masked_pixels import MaskedPixels
from model.masking import masked_count
from model.randomness import orders
from trainer.config.schema import RunConfig
from trainer.objectives.base import Inputs
from trainer.objectives.footprint import META, Rehearsal
from trainer.objectives.images import ImageObjective, Listed, pixels_on
from trainer.objectives.initial_weights import take_initial_weights


class PixelsObjective(ImageObjective):
    """Trains ADDP's encoder, and exports ADDP's network: it can be evaluated, fine-tuned and
    carried on as ADDP's own, but it generates nothing."""

    initial_section = "addp"

    def __init__(
        self, config: RunConfig, fresh: bool = False, listed: Listed | None = None
    ) -> None:
        if config.zero_stage == 3:
            raise ConfigError(
                "objective pixels trains in ZeRO 0 to 2: set zero_stage to one of these"
            )
        super().__init__(config, fresh, listed)
        network = ADDP(config.geometry, config.addp.sizes)
        self.initial_weights = take_initial_weights(config, network, fresh)
        self.exported, self.network = network, MaskedPixels(network, config.pixels)

    def inputs(self, batch: ImageBatch, step: int, device: torch.device) -> Inputs:
        """images: (B, 3, H, W) float32 in [0, 1]. kept, masked: (B, N) and (B, L - N) int64, the
        patches that the encoder sees and the others, drawn by the index of the sample."""
        seed, count = self.config.seed, len(batch.labels)
        order = orders(seed, "masked-pixels", batch.start, count, _tokens(self.config))
        return _inputs(self.config, batch, staged(torch.from_numpy(order)), device)

    @classmethod
    def networks(cls, config: RunConfig) -> tuple[nn.Module, list[nn.Module]]:
        network = ADDP(config.geometry, config.addp.sizes)
        return MaskedPixels(network, config.pixels), []

    @classmethod
    def rehearsal(cls, config: RunConfig) -> Rehearsal:
        def inputs(batch: ImageBatch) -> Inputs:
            order = torch.arange(_tokens(config)).repeat(len(batch.labels), 1)
            return _inputs(config, batch, order, META)

        return Rehearsal(cls.networks(config)[0], inputs)

    @classmethod
    def depends_on_micro(cls, config: RunConfig) -> bool:
        return config.addp.sizes.dropout > 0

    @classmethod
    def next_steps(cls, run: Path, network: Path) -> str:
        return f"`addp evaluate {run} --suite knn,linear --images IMAGES`"


def _tokens(config: RunConfig) -> int:
    return config.geometry.tokens


def _inputs(config: RunConfig, batch: ImageBatch, order: Tensor, device: torch.device) -> Inputs:
    """order: (B, L) int64, the patches of each image in the order in which they are masked."""
    images, order = pixels_on(device, batch), order.to(device, non_blocking=True)
    hidden = masked_count(order.shape[1], config.pixels.masked)
    return {"images": images, "kept": order[:, hidden:], "masked": order[:, :hidden]}
