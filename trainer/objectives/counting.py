"""Operations of a network, counted without computing anything.

PyTorch's own counter goes over the real networks on the meta device, where tensors have shapes and
no values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.config import TransformerConfig
from model.masking import ratio_table
from trainer.config.schema import RunConfig


class Operations(NamedTuple):
    """Floating-point operations of one image, a multiply-add counted as two. trained: forward and
    backward pass of the trained network. frozen: forward pass of the frozen ones."""

    trained: float
    frozen: float

    @property
    def total(self) -> float:
        return self.trained + self.frozen


def training_flops(forward: Callable[[], Tensor]) -> float:
    """Operations of a forward pass, on the meta device, and of its backward pass."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(forward().sum())
    return counter.get_total_flops()


def inference_flops(forward: Callable[[], object]) -> float:
    """Operations of a forward pass, on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def by_blocks(
    count: Callable[[RunConfig], Operations], config: RunConfig, trained: TransformerConfig
) -> Operations:
    """What `count` would find for the whole network, from three small ones: the blocks of a
    transformer are alike, so that what one more costs is counted, and the others are multiplied.

    trained: the sizes of the trained network. What is frozen has those of the predictor.
    """
    least, deeper, wider = (count(with_blocks(config, *n)) for n in ((1, 1), (2, 1), (1, 2)))
    return Operations(
        *(
            one + (of.depth - 1) * (deep - one) + (of.decoder_depth - 1) * (wide - one)
            for of, one, deep, wide in zip(
                (trained, config.predictor.sizes), least, deeper, wider, strict=True
            )
        )
    )


def with_blocks(config: RunConfig, depth: int, decoder_depth: int) -> RunConfig:
    """The same run with so many blocks in predictor and ADDP network."""

    def changed(sizes: TransformerConfig) -> TransformerConfig:
        return sizes.model_copy(update={"depth": depth, "decoder_depth": decoder_depth})

    return config.model_copy(
        update={
            name: section.model_copy(update={"sizes": changed(section.sizes)})
            for name, section in (("predictor", config.predictor), ("addp", config.addp))
        }
    )


def mean_ratio() -> float:
    """The mean of the mask ratios that are drawn."""
    ratios, weights = ratio_table()
    return sum(r * w for r, w in zip(ratios, weights, strict=True))
