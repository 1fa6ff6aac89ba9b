"""ADDP's encoder (section 3.3): a ViT that sees pixels only. It is what transfers to recognition.

Names follow the official checkpoint. Shapes: B images, L patches, D wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Geometry, TransformerConfig
from model.dropout import dropout
from model.positions import on_grid
from model.transformer import blocks, gather_positions, learned, positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDES = (4, 8, 16, 32)  # of the four maps that detectors and segmenters expect


class PatchEmbedding(nn.Module):
    """A linear map of each patch, in raster order."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, D)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class PixelTransformer(nn.Module):
    """A ViT with a class slot and learned positions: its parameters, and how pixels enter it.

    tokenizer_norm: whether there is a LayerNorm before the blocks, as in ADDP's pre-training; the
    reference fine-tunes without it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, geometry: Geometry, config: TransformerConfig, *, tokenizer_norm: bool
    ) -> None:
        super().__init__()
        self.geometry = geometry
        c = config
        self.patch_embed = PatchEmbedding(geometry.patch_size, c.dim)
        self.cls_token = learned(1, 1, c.dim)
        self.pos_embed = positions(c.positions, geometry.grid, c.dim)
        self.tokenizer_norm = nn.LayerNorm(c.dim, eps=1e-6) if tokenizer_norm else nn.Identity()
        self.blocks = blocks(c.depth, c.dim, c.heads, c.dropout)
        self.dropout = c.dropout
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def _embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + L, D), before the blocks. For another grid than the trained one,
        positions are interpolated."""
        x = (images.clamp(0, 1).to(self.mean.dtype) - self.mean) / self.std
        x = x.to(self.cls_token.dtype)  # an engine may keep buffers in another precision
        patch = self.geometry.patch_size
        at = on_grid(self.pos_embed, images.shape[-2] // patch, images.shape[-1] // patch)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)], 1) + at
        return dropout(self.tokenizer_norm(x), self.dropout, self.training)


class Encoder(PixelTransformer):
    """The ViT of ADDP's encoder. norm: whether there is a LayerNorm after the blocks."""

    def __init__(
        self,
        geometry: Geometry,
        config: TransformerConfig,
        *,
        tokenizer_norm: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__(geometry, config, tokenizer_norm=tokenizer_norm)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6) if norm else nn.Identity()

    def encode(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encode images (B, 3, H, W), clamped to [0, 1], to features (B, 1 + L, D); index 0 is the
        class slot.

        kept: the patches that enter the blocks, (B, N) int64; their features are (B, 1 + N, D). All
        of them enter if None.
        """
        x = self._embed(images)
        if kept is not None:
            x = torch.cat([x[:, :1], gather_positions(x[:, 1:], kept)], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def feature_maps(self, images: Tensor, at: Sequence[int] | None = None) -> list[Tensor]:
        """Return four maps (B, D, H / s, W / s) with s = 4, 8, 16, 32, for detectors and
        segmenters.

        images: (B, 3, H, W) in [0, 1], H and W multiples of the patch, of any size. at: the numbers
        of four blocks, counted from 1; the quarters of the depth if None (3, 6, 9 and 12 of Base),
        as UperNet takes them from plain ViTs. The maps are resized without weights: bilinear up,
        average down. Gradients flow.
        """
        depth, patch = len(self.blocks), self.geometry.patch_size
        at = at or [max(1, round(depth * (i + 1) / len(STRIDES))) for i in range(len(STRIDES))]
        height, width = images.shape[-2] // patch, images.shape[-1] // patch
        x, outputs = self._embed(images), {}
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            outputs[number] = self.norm(x) if number == depth else x
        maps = []
        for number, stride in zip(at, STRIDES, strict=True):
            grid = outputs[number][:, 1:].transpose(1, 2).reshape(len(x), -1, height, width)
            size = (max(1, height * patch // stride), max(1, width * patch // stride))
            larger = size[0] >= height
            maps.append(
                F.interpolate(grid, size, mode="bilinear", align_corners=False)
                if larger
                else F.adaptive_avg_pool2d(grid, size)
            )
        return maps
