"""Guidance: tokens are drawn by logits that are pushed away from those of a poorer prediction.

    l + w (l - l0)

l0 is what the network predicts when it knows nothing (unsupervised guidance, as LLaDA has it, arXiv
2502.09992), the same in all steps; or what a poorer network predicts of the same state
(autoguidance, arXiv 2406.02507).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.addp import ADDP


def guided(logits: Tensor, poorer: Tensor | None, weight: float) -> Tensor:
    """Return l + w (l - l0). logits: l, (B, L, K). poorer: l0, the same or (1, L, K); None without
    guidance, where the logits themselves are returned, as with w = 0."""
    return logits if poorer is None or weight == 0 else logits + weight * (logits - poorer)


def fully_masked_logits(network: ADDP) -> Tensor:
    """Return the network's logits where nothing is known, (1, L, K). They depend on neither image
    nor ids."""
    length, size = network.geometry.tokens, network.geometry.image_size
    image = network.pos_embed.new_zeros(1, 3, size, size)
    ids = torch.zeros(1, length, dtype=torch.int64, device=image.device)
    logits = network.logits(image, ids, torch.ones_like(ids, dtype=torch.bool), 0)
    return logits[..., : network.geometry.codebook_size]
