"""Maps of one stride become maps of several strides.

`FourStrides` is MAE's and BEiT's, for UperNet: one map of each of four blocks. `SimplePyramid` is
ViTDet's, for Mask R-CNN: the last map alone. Strides are those for patches of 16 pixels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from model.dense.batch_norm import RankBatchNorm


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _doubled(channels: int, out: int) -> nn.ConvTranspose2d:
    """(B, channels, H, W) -> (B, out, 2 H, 2 W)."""
    return nn.ConvTranspose2d(channels, out, 2, stride=2)


class FourStrides(nn.Module):
    """Brings four maps of stride 16 to strides 4, 8, 16 and 32 (mmsegmentation's
    `Feature2Pyramid`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    _doubled(dim, dim), RankBatchNorm(dim), nn.GELU(), _doubled(dim, dim)
                ),
                _doubled(dim, dim),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, D, H, W) -> (B, D, H * f, W * f) with f = 4, 2, 1, 1/2."""
        return [stage(x) for stage, x in zip(self.stages, maps, strict=True)]


class SimplePyramid(nn.Module):
    """Makes maps of strides 4, 8, 16, 32 and 64 from one of stride 16 (ViTDet, section 3)."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        up4 = [_doubled(dim, half), ChannelNorm(half), nn.GELU(), _doubled(half, quarter)]
        stages: list[tuple[int, list[nn.Module]]] = [
            (quarter, up4),
            (half, [_doubled(dim, half)]),
            (dim, []),
            (dim, [nn.MaxPool2d(2)]),
        ]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *resize,
                nn.Conv2d(width, channels, 1, bias=False),
                ChannelNorm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ChannelNorm(channels),
            )
            for width, resize in stages
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """(B, D, H, W) -> maps (B, channels, H * f, W * f), f = 4, 2, 1, 1/2, 1/4, by name from p2
        to p6, the names of FPN. p6 is for proposals only."""
        maps = OrderedDict((f"p{i}", stage(x)) for i, stage in enumerate(self.stages, 2))
        maps["p6"] = F.max_pool2d(maps["p5"], 1, stride=2)
        return maps
