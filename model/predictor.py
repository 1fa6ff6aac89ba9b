"""The token predictor: MAGE (CVPR 2023, arXiv 2211.09117), a ViT encoder-decoder on token ids. It
is frozen while ADDP trains.

    encoder   [class slot, kept positions]   of L; in training half of them, all masked, stay out
    decoder   [class slot, all positions]    the class slot's feature stands where one was left out
                                             or masked

Names follow the official checkpoint. `mask` is bool and True means masked (unknown, to be
predicted).

The class slot holds one id of the vocabulary, always the same in the published network. A
conditional one reads its class there, and that id where no class is told.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.conditioning import NOT_TOLD, KnowsClasses
from model.config import Geometry, TransformerConfig
from model.dropout import dropout
from model.transformer import (
    MlmHead,
    blocks,
    gather_positions,
    initialise,
    masked_count_of,
    positions,
    smoothed_cross_entropy,
)


class _TokenEmbedding(nn.Module):
    """Word + learned position -> LayerNorm (eps 1e-6) -> dropout."""

    def __init__(self, geometry: Geometry, c: TransformerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(geometry.vocabulary, c.dim)
        self.position_embeddings = nn.Embedding(geometry.tokens + 1, c.dim)
        self.LayerNorm = nn.LayerNorm(c.dim, eps=1e-6)
        self.dropout = c.dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.position_embeddings.weight
        return dropout(self.LayerNorm(x), self.dropout, self.training)


class TokenPredictor(KnowsClasses, nn.Module):
    """Predicts p(code at the masked positions | visible tokens)."""

    kind = "predictor"

    def __init__(self, geometry: Geometry, config: TransformerConfig) -> None:
        super().__init__()
        self.geometry = geometry
        self.config = config
        c = config
        self.token_emb = _TokenEmbedding(geometry, c)
        self.blocks = blocks(c.depth, c.dim, c.heads, c.dropout)
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.decoder_embed = nn.Linear(c.dim, c.dim)
        self.decoder_pos_embed_learned = positions(c.positions, geometry.grid, c.dim)
        self.decoder_blocks = blocks(c.decoder_depth, c.dim, c.decoder_heads, c.dropout)
        self.decoder_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.mlm_layer = MlmHead(c.dim, geometry.vocabulary)
        initialise(self)
        if c.positions != "normal":
            self.token_emb.position_embeddings.weight.data.copy_(
                positions(c.positions, geometry.grid, c.dim)[0]
            )

    def logits(
        self, ids: Tensor, mask: Tensor, kept: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Predict tokens: ids (B, L) int, mask (B, L) bool -> logits (B, L, V).

        kept: (B, N) int64, the positions in 0 .. L-1 that enter the encoder, ascending; all of them
        if None. Only masked positions may be left out (MAGE leaves out half of the tokens while it
        trains). classes: the images' labels, (B,) int64, `NOT_TOLD` where the prediction is
        unconditional; None where all are.
        """
        return self._head(self._features(ids, mask, kept, classes))

    def _head(self, x: Tensor, count: int | None = None) -> Tensor:
        return self.mlm_layer(x, self.token_emb.word_embeddings.weight, count)

    def _class_slot(self, count: int, classes: Tensor | None, device: torch.device) -> Tensor:
        """Return the ids that the class slots hold, (B, 1)."""
        empty = self.geometry.class_slot_id
        if classes is None:
            return torch.full((count, 1), empty, device=device)
        words = self.geometry.codebook_size + classes
        # The class whose id says that none is told takes the mask's, which no slot else holds.
        words = words.masked_fill(words == empty, self.geometry.mask_id)
        return words.masked_fill(classes == NOT_TOLD, empty).unsqueeze(1)

    def _features(
        self, ids: Tensor, mask: Tensor, kept: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """As `logits`, up to the head: (B, L, D)."""
        ids = ids.long().masked_fill(mask, self.geometry.mask_id)
        class_slot = self._class_slot(len(ids), classes, ids.device)
        x = self.token_emb(torch.cat([class_slot, ids], 1))
        if kept is not None:
            # The class slot, index 0, always stays.
            kept = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], 1).unsqueeze(-1)
            x = x.gather(1, kept.expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        slot = x[:, :1]
        if kept is not None:
            full = slot.expand(-1, ids.shape[1] + 1, -1)
            x = full.scatter(1, kept.expand(-1, -1, x.shape[2]), x)
        masked = F.pad(mask, (1, 0)).unsqueeze(-1)  # the class slot itself is never masked
        x = torch.where(masked, slot, x) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, 1:]

    @torch.no_grad()
    def probabilities(self, ids: Tensor, mask: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return the probabilities of the K codes, float32 (B, L, K); arguments as in `logits`."""
        codes = self.geometry.codebook_size
        features = self._features(ids, mask, classes=classes)
        return self._head(features, codes).float().softmax(-1)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        kept: Tensor,
        smoothing: float,
        weights: Tensor | None = None,
        *,
        masked_count: int | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Return MAGE's training loss, a scalar: label-smoothed cross-entropy over V at the masked
        positions. weights: of the samples, (B,), or None. masked_count: how many positions of each
        image are masked; pass it if it is known, as reading it from the mask waits for the device.
        classes: as in `logits`.
        """
        if masked_count is None:
            masked_count = masked_count_of(mask)
        masked = mask.int().argsort(dim=1, descending=True, stable=True)[:, :masked_count]
        logits = self._head(gather_positions(self._features(ids, mask, kept, classes), masked))
        return smoothed_cross_entropy(logits, ids.gather(1, masked), None, smoothing, weights)
