"""The ADDP network (section 3.3): an encoder that sees pixels only, and a decoder that predicts
tokens.

    images (B, 3, H, W) --encoder--> features (B, 1 + L, D)
                                          |
        class slot          mask token + its position
        masked              mask token + its position   (another table)
        visible             feature    + its position
        visible, appended   token      + its position   (a third table)
                                          |
                                      decoder --> logits (B, L, V)

Names follow the official checkpoint. `mask` is bool, (B, L), and True means masked (unknown, to be
predicted).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Geometry, TransformerConfig
from model.encoder import Encoder
from model.transformer import (
    MlmHead,
    blocks,
    initialise,
    learned,
    positions,
    smoothed_cross_entropy,
)


class ADDP(Encoder):
    """The network that is pre-trained. Its encoder half is what transfers to recognition."""

    kind = "addp"

    def __init__(self, geometry: Geometry, config: TransformerConfig) -> None:
        super().__init__(geometry, config)
        self.config = c = config
        self.token_emb = nn.Embedding(geometry.vocabulary, c.dim)
        self.decoder_embed = nn.Linear(c.dim, c.dim)
        self.mask_token = learned(1, 1, c.dim)
        self.decoder_pos_embed_learned = positions(c.positions, geometry.grid, c.dim)
        self.decoder_pos_mask_embed = positions(c.positions, geometry.grid, c.dim)
        self.decoder_pos_token_embed = positions(c.positions, geometry.grid, c.dim)
        self.decoder_blocks = blocks(c.decoder_depth, c.dim, c.decoder_heads, c.dropout)
        self.decoder_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.mlm_layer = MlmHead(c.dim, geometry.vocabulary)
        initialise(self)

    def decode(
        self, features: Tensor, ids: Tensor, mask: Tensor, visible_count: int | None = None
    ) -> Tensor:
        """Predict tokens: features (B, 1 + L, D), ids (B, L), mask (B, L) -> logits (B, L, V).

        visible_count: the number of unmasked positions, which is the same for every image. Pass it
        if it is known: reading it from the mask waits for the device.
        """
        if visible_count is None:
            counts = (~mask).sum(1)
            visible_count = int(counts[0])
            assert bool((counts == visible_count).all()), (
                "every image of a batch needs the same number of masked tokens"
            )
        # The class slot is hidden like a masked position.
        hidden = F.pad(mask, (1, 0), value=True).unsqueeze(-1)
        x = self.decoder_embed(features)
        x = torch.where(hidden, self.mask_token.to(x.dtype), x)
        masked = F.pad(mask, (1, 0), value=False).unsqueeze(-1)
        x = x + torch.where(masked, self.decoder_pos_mask_embed, self.decoder_pos_embed_learned)
        # A stable sort of the mask puts the visible positions first, in raster order, without a
        # wait for the device.
        visible = mask.int().argsort(dim=1, stable=True)[:, :visible_count]
        tokens = self.token_emb(ids.long().gather(1, visible))
        tokens = tokens + self.decoder_pos_token_embed[0, 1:][visible]
        x = torch.cat([x, tokens.to(x.dtype)], 1)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x)[:, 1 : 1 + ids.shape[1]]
        return self.mlm_layer(x, self.token_emb.weight)

    def logits(
        self, images: Tensor, ids: Tensor, mask: Tensor, visible_count: int | None = None
    ) -> Tensor:
        """Encode images (B, 3, H, W) and predict tokens: logits (B, L, V); the rest as in
        `decode`."""
        return self.decode(self.encode(images), ids, mask, visible_count)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        target: Tensor,
        smoothing: float,
        *,
        visible_count: int | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the pre-training loss (eq. 8), a scalar. target: probabilities (B, L, K).
        smoothing: of the target. weights: of the samples, (B,), or None. The rest is as in
        `logits`."""
        logits = self.logits(images, ids, mask, visible_count)
        return smoothed_cross_entropy(logits, target, mask, smoothing, weights)
