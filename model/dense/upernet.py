"""UperNet's heads (arXiv 1807.10221), from transformers. No other file imports transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from model.dense.batch_norm import over_ranks
from model.dense.config import SegmenterConfig
from model.dense.torchvision_parts import prepare
from model.device import ordered
from model.errors import ConfigError


def heads(config: SegmenterConfig) -> tuple[nn.Module, nn.Module]:
    """Return (UperNet's head, the auxiliary FCN head). Each maps four maps (B, D, H / s, W / s),
    s = 4, 8, 16, 32, to logits (B, classes, ...), the first at stride 4, the second at stride 16.

    As in mmsegmentation, BatchNorm is over all ranks, and a share of channels is dropped before
    each classifier. Raises ConfigError if transformers is missing.
    """
    prepare()  # transformers imports a torchvision that is installed
    try:
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead
    except ImportError as error:
        raise ConfigError(
            "segmentation needs UperNet's heads from transformers: pip install 'addp[segment]' "
            f"({error})"
        ) from error
    sizes = UperNetConfig(
        hidden_size=config.channels,
        auxiliary_channels=config.auxiliary_channels,
        num_labels=len(config.classes),
    )
    widths = [config.backbone.encoder.dim] * len(config.blocks)
    main, auxiliary = UperNetHead(sizes, widths), UperNetFCNHead(sizes, widths)
    for block in main.psp_modules.blocks:
        block.layers[0] = _Means(block.layers[0].output_size)
        block.add_module("0", block.layers[0])
    return _as_published(main, config.dropout), _as_published(auxiliary, config.dropout)


class _Means(nn.AdaptiveAvgPool2d):
    """The same, in a fixed order where that is asked for."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(ordered(input)).to(input.device)


def _as_published(head: Any, dropout: float) -> Any:
    """Add what transformers leaves out, and begin with mmsegmentation's first weights."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)
    head.classifier = nn.Sequential(nn.Dropout2d(dropout), head.classifier)
    return over_ranks(head)
