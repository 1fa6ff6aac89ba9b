"""Learned tables of positions on another grid.

A table has a row for the class slot and then one for each patch of a square grid, in raster order:

    (1, 1 + g * g, D)  -->  (1, 1 + height * width, D)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.device import ordered

# The tables of encoders, and of the decoders of ADDP and of the predictor. That of an embedding has
# no leading 1.
TABLES = (
    "pos_embed",
    "token_emb.position_embeddings.weight",
    "decoder_pos_embed_learned",
    "decoder_pos_mask_embed",
    "decoder_pos_token_embed",
)


def on_grid(table: Tensor, height: int, width: int) -> Tensor:
    """Return a table of positions for a grid of height x width patches.

    The row of the class slot stays. Those of the grid are interpolated in float32 (bicubic, corners
    not aligned, as MAE and DeiT do); where the grid is the table's own, the table itself is
    returned. The result has the table's dtype. Gradients flow.
    """
    grid = math.isqrt(table.shape[1] - 1)
    assert 1 + grid * grid == table.shape[1], table.shape
    if (height, width) == (grid, grid):
        return table
    if table.is_meta:  # only shapes are looked at
        return table.new_empty(1, 1 + height * width, table.shape[2])
    rows = table[:, 1:].transpose(1, 2).reshape(1, -1, grid, grid)
    rows = ordered(rows.float())
    rows = F.interpolate(rows, (height, width), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], rows.flatten(2).transpose(1, 2).to(table)], 1)
