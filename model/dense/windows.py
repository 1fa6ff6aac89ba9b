"""Attention on a grid, within windows or over all of it, with relative positions (ViTDet, arXiv
2203.16527; MViTv2, arXiv 2112.01526).

Shapes: B images, H x W patches, N windows of h x w patches, D wide.

    the grid, padded with zeros to whole windows       a window is a sequence of its own

        +------+------+--+                                 +------+
        |  0   |  1   |2 :   0                             |  0   |   (B * 6, h, w, D)
        +------+------+--+ . .                             +------+
        |  3   |  4   |5 :   0                             |  1   |
        +------+------+--+                                   ...
        :  0   :  0   :                                    |  5   |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attention
from model.transformer import Attention

_WIDTH_UNIT = 8  # attention kernels of GPUs want head widths that are multiples of it


def partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, D) -> (B * windows, size, size, D), in raster order. The grid is filled up with
    zeros, at its bottom and right, to whole windows."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    b, rows, columns, d = x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3]
    x = x.view(b, rows, size, columns, size, d).transpose(2, 3)
    return x.reshape(b * rows * columns, size, size, d)


def merge(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition` of a grid of height x width patches, and cut off what filled it up."""
    size, d = windows.shape[1], windows.shape[3]
    rows, columns = -(-height // size), -(-width // size)
    x = windows.view(-1, rows, columns, size, size, d).transpose(2, 3)
    return x.reshape(-1, rows * size, columns * size, d)[:, :height, :width]


def relative(table: Tensor, length: int) -> Tensor:
    """Return the entries of a table of relative positions (2 * side - 1, d) for all pairs of an
    axis: (length, length, d), of which [q, k] is that of the distance q - k. A table for another
    length is interpolated (linear)."""
    entries = 2 * length - 1
    if len(table) != entries:
        # In float32 on both sides: float16 has no linear interpolation on CPUs.
        resized = F.interpolate(table.float().t()[None], entries, mode="linear")
        table = resized[0].t().to(table.dtype)
    at = torch.arange(length, device=table.device)
    return table[at[:, None] - at[None] + length - 1]


class GridAttention(Attention):
    """Multi-head self-attention on a grid.

    size: side of a window; 0 for attention over the whole grid. side: the grid's side for which
    relative positions are learned; 0 for none. They begin with zeros.

    A relative position adds q · r_h[y - y'] + q · r_w[x - x'] to the score of a query q at (y, x)
    and a key at (y', x'), where r_h and r_w are learned. This is a product of longer vectors:

        query:  q * a     q · r_h[y - 0] .. q · r_h[y - (h - 1)]     the same along x     times b
        key:    k         1 at y', else 0                            1 at x', else 0

    So any kernel for attention computes it, and no matrix of all scores is held in memory: of 1024
    pixels it would have 201 million elements a block and image. a and b make up for the division
    by the root of the vectors' width.
    """

    def __init__(self, dim: int, heads: int, dropout: float, *, size: int, side: int) -> None:
        super().__init__(dim, heads, dropout)
        self.size = size
        self.relative = side > 0
        if side:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D) -> (B, H, W, D)."""
        height, width = x.shape[1:3]
        windows = partition(x, self.size) if self.size else x
        n, h, w, d = windows.shape
        q, k, v = self.qkv(windows).view(n, h * w, 3, self.heads, d // self.heads).unbind(2)
        each = v.shape[-1]
        if self.relative:
            q, k = self._with_positions(q, k, h, w)
            v = F.pad(v, (0, q.shape[-1] - each))  # the fastest kernels want three of one width
        y = attention(q, k, v, self.dropout if self.training else 0.0)[..., :each]
        y = y.reshape(n, h, w, d)
        y = merge(y, height, width) if self.size else y
        return F.dropout(self.proj(y), self.dropout, self.training)

    def _with_positions(self, q: Tensor, k: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """q, k: (N, h * w, heads, d) -> the same, at least d + h + w wide, as drawn above."""
        n, length, heads, d = q.shape
        grid = q.view(n, h, w, heads, d)
        along_h = torch.einsum("nyxad,yjd->nyxaj", grid, relative(self.rel_pos_h, h).to(q.dtype))
        along_w = torch.einsum("nyxad,xjd->nyxaj", grid, relative(self.rel_pos_w, w).to(q.dtype))
        added = torch.cat([along_h, along_w], -1).view(n, length, heads, h + w)
        of_rows = torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, 0)
        of_columns = torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1)
        chosen = torch.cat([of_rows, of_columns], 1)[None, :, None].expand(n, -1, heads, -1)
        longer = d + h + w + -(d + h + w) % _WIDTH_UNIT
        rest = (0, longer - (d + h + w))
        q = torch.cat([q * (longer / d) ** 0.5, added.to(q.dtype) * longer**0.5], -1)
        return F.pad(q, rest), F.pad(torch.cat([k, chosen], -1), rest)
