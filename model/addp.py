"""The ADDP network (section 3.3): an encoder that sees pixels only, and a decoder that predicts
tokens.

    images (B, 3, H, W) --encoder--> features (B, 1 + L, D)
                                          |
        class slot          mask token + its position   (or its class's token, see below)
        masked              mask token + its position   (another table)
        visible             feature    + its position
        visible, appended   token      + its position   (a third table)
                                          |
                                      decoder --> logits (B, L, V)

Names follow the official checkpoint. `mask` is bool, (B, L), and True means masked (unknown, to be
predicted).

Published networks know no classes, but their vocabulary has ids for them, and their decoder has the
slot. So a conditional network has the same tensors, and an image whose class is not told is
predicted as by an unconditional one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.conditioning import NOT_TOLD, KnowsClasses
from model.config import Geometry, TransformerConfig
from model.encoder import Encoder
from model.transformer import (
    MlmHead,
    blocks,
    gather_positions,
    initialise,
    learned,
    masked_count_of,
    positions,
    smoothed_cross_entropy,
)


class ADDP(KnowsClasses, Encoder):
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
        self.decoder_blocks = blocks(
            c.decoder_depth, c.dim, c.decoder_heads, c.dropout, varying_length=True
        )
        self.decoder_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.mlm_layer = MlmHead(c.dim, geometry.vocabulary)
        initialise(self)

    def decode(
        self,
        features: Tensor,
        ids: Tensor,
        mask: Tensor,
        visible_count: int | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Predict tokens: features (B, 1 + L, D), ids (B, L), mask (B, L) -> logits (B, L, V).

        visible_count: the number of unmasked positions, which is the same for every image. Pass it
        if it is known: reading it from the mask waits for the device. classes: the images' labels,
        (B,) int64, `NOT_TOLD` where the prediction is unconditional; None where all are.
        """
        visible, _ = _split(mask, visible_count)
        x = self._decode(features, ids, mask, visible, classes)
        return self.mlm_layer(x, self.token_emb.weight)

    def _decode(
        self, features: Tensor, ids: Tensor, mask: Tensor, visible: Tensor, classes: Tensor | None
    ) -> Tensor:
        """As `decode`, up to the head: (B, L, D). visible: the visible positions, (B, N)."""
        # The class slot is hidden like a masked position.
        hidden = F.pad(mask, (1, 0), value=True).unsqueeze(-1)
        x = self.decoder_embed(features)
        x = torch.where(hidden, self._hidden(classes).to(x.dtype), x)
        masked = F.pad(mask, (1, 0), value=False).unsqueeze(-1)
        x = x + torch.where(masked, self.decoder_pos_mask_embed, self.decoder_pos_embed_learned)
        tokens = self.token_emb(ids.long().gather(1, visible))
        tokens = tokens + self.decoder_pos_token_embed[0, 1:][visible]
        x = torch.cat([x, tokens.to(x.dtype)], 1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, 1 : 1 + ids.shape[1]]

    def _hidden(self, classes: Tensor | None) -> Tensor:
        """Return what stands at hidden positions: the mask token, (1, 1, D), or with classes
        (B, 1 + L, D), where those that are told stand in the class slot."""
        if classes is None:
            return self.mask_token
        told = (classes != NOT_TOLD).view(-1, 1, 1)
        words = self.token_emb(self.geometry.codebook_size + classes.clamp_min(0)).unsqueeze(1)
        slot = torch.where(told, words, self.mask_token)
        rest = self.mask_token.expand(len(classes), self.geometry.tokens, -1)
        return torch.cat([slot, rest], 1)

    def logits(
        self,
        images: Tensor,
        ids: Tensor,
        mask: Tensor,
        visible_count: int | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Encode images (B, 3, H, W) and predict tokens: logits (B, L, V); the rest as in
        `decode`."""
        return self.decode(self.encode(images), ids, mask, visible_count, classes)

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
        classes: Tensor | None = None,
    ) -> Tensor:
        """Return the pre-training loss (eq. 8), a scalar. target: probabilities (B, L, K).
        smoothing: of the target. weights: of the samples, (B,), or None. The rest is as in
        `logits`. Logits are made for the masked positions only, since no others count."""
        visible, masked = _split(mask, visible_count)
        x = self._decode(self.encode(images), ids, mask, visible, classes)
        logits = self.mlm_layer(gather_positions(x, masked), self.token_emb.weight)
        return smoothed_cross_entropy(
            logits, gather_positions(target, masked), None, smoothing, weights
        )


def _split(mask: Tensor, visible_count: int | None) -> tuple[Tensor, Tensor]:
    """Return the visible positions of a mask (B, L) and the masked ones, (B, N) and (B, L - N),
    each in raster order."""
    if visible_count is None:
        visible_count = mask.shape[1] - masked_count_of(mask)
    # A stable sort does without a wait for the device.
    order = mask.int().argsort(dim=1, stable=True)
    return order[:, :visible_count], order[:, visible_count:]
