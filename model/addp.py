"""The ADDP network (section 3.3): an encoder that sees pixels only, and a decoder that predicts
tokens.

    images (B, 3, H, W) --encoder--> features (B, 1 + L, D)
                                          |
        class slot          mask token + its position
        masked              mask token + its position   (another table)
        visible             feature    + its position
        visible, appended   token      + its position   (a third table)
        class, appended     its token  + the class slot's position   (of the third table)
                                          |
                                      decoder --> logits (B, L, V)

Names follow the official checkpoint. `mask` is bool, (B, L), and True means masked (unknown, to be
predicted). Published networks know no classes; the vocabulary has ids for them, and the third table
a position, so that a network with classes has the same tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConditionalConfig, Geometry, TransformerConfig
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
        self.decoder_blocks = blocks(
            c.decoder_depth, c.dim, c.decoder_heads, c.dropout, varying_length=True
        )
        self.decoder_norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.mlm_layer = MlmHead(c.dim, geometry.vocabulary)
        initialise(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that the network was conditioned on, in the order of
        their labels; none for an unconditional network."""
        return self.config.classes if isinstance(self.config, ConditionalConfig) else ()

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
        (B,) int64; the prediction is unconditional if None.
        """
        visible, _ = _split(mask, visible_count)
        x = self._decode(features, ids, mask, visible, classes, None)
        return self.mlm_layer(x, self.token_emb.weight)

    def _decode(
        self,
        features: Tensor,
        ids: Tensor,
        mask: Tensor,
        visible: Tensor,
        classes: Tensor | None,
        dropped: Tensor | None,
    ) -> Tensor:
        """As `decode`, up to the head: (B, L, D). visible: the visible positions, (B, N). dropped:
        as in `forward`."""
        # The class slot is hidden like a masked position.
        hidden = F.pad(mask, (1, 0), value=True).unsqueeze(-1)
        x = self.decoder_embed(features)
        x = torch.where(hidden, self.mask_token.to(x.dtype), x)
        masked = F.pad(mask, (1, 0), value=False).unsqueeze(-1)
        x = x + torch.where(masked, self.decoder_pos_mask_embed, self.decoder_pos_embed_learned)
        x = torch.cat([x, self._appended(ids, visible, classes).to(x.dtype)], 1)
        keys = None
        if dropped is not None:  # the last position is the class's
            keys = F.pad(~dropped.unsqueeze(1), (x.shape[1] - 1, 0), value=True)
        for block in self.decoder_blocks:
            x = block(x, keys)
        return self.decoder_norm(x)[:, 1 : 1 + ids.shape[1]]

    def _appended(self, ids: Tensor, visible: Tensor, classes: Tensor | None) -> Tensor:
        """Return the tokens that the decoder sees beside the positions of the image, (B, N, D), or
        (B, N + 1, D) with the classes'."""
        words, places = ids.long().gather(1, visible), visible + 1
        if classes is not None:
            # The table is looked into once, with classes and without: ranks of ZeRO-3 gather it
            # together, and one of them may have dropped all of its classes.
            words = torch.cat([words, self.geometry.codebook_size + classes.unsqueeze(1)], 1)
            places = F.pad(places, (0, 1), value=0)
        return self.token_emb(words) + self.decoder_pos_token_embed[0][places]

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
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Return the pre-training loss (eq. 8), a scalar. target: probabilities (B, L, K).
        smoothing: of the target. weights: of the samples, (B,), or None. dropped: (B,) bool, True
        where the class is not told, so that this image's prediction is unconditional; None where
        all are told. The rest is as in `logits`. Logits are made for the masked positions only,
        since no others count."""
        visible, masked = _split(mask, visible_count)
        x = self._decode(self.encode(images), ids, mask, visible, classes, dropped)
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
