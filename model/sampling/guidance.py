"""Guidance: tokens are drawn by logits that are pushed away from those of a poorer prediction.

    l + w (l - l0)

l0 is what the network predicts when it knows nothing (unsupervised guidance, as LLaDA has it, arXiv
2502.09992). It is the same in all steps.

Where samples have classes, l itself is guided by them (classifier-free guidance, arXiv 2207.12598):
lu + w (lc - lu), of the same state without the class and with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.addp import ADDP


def guided(logits: Tensor, poorer: Tensor | None, weight: float) -> Tensor:
    """Return l + w (l - l0). logits: l, (B, L, K). poorer: l0, the same or (1, L, K); None without
    guidance, where the logits themselves are returned, as with w = 0. Guided ones are float32."""
    if poorer is None or weight == 0:
        return logits
    wide = logits.float()  # a weight enlarges what bf16 rounds away
    return wide + weight * (wide - poorer.float())


def code_logits(
    network: ADDP,
    image: Tensor,
    ids: Tensor,
    mask: Tensor,
    visible_count: int | None,
    classes: Tensor | None = None,
    class_guidance: float = 1.0,
) -> Tensor:
    """Return a network's logits over codes, (B, L, K): lu + w (lc - lu), w the class guidance.

    w = 0 gives lu and w = 1 gives lc, each in one pass; others give float32 and cost one more pass
    of the decoder, as the encoder sees no class. classes: labels, (B,); lu if None. The rest is as
    in `ADDP.decode`.
    """
    count, told = len(ids), classes is not None and class_guidance != 0
    if visible_count == 0:  # neither image nor ids matter: images of a class have the same logits
        rows = count if told else 1
        image, ids, mask = image[:1], ids[:rows], mask[:rows]
    features = network.encode(image).expand(len(ids), -1, -1)
    logits = network.decode(features, ids, mask, visible_count, classes if told else None)
    if told and class_guidance != 1:
        plain = network.decode(features, ids, mask, visible_count).float()
        logits = plain + class_guidance * (logits.float() - plain)
    return logits[..., : network.geometry.codebook_size].expand(count, -1, -1)


def fully_masked_logits(network: ADDP) -> Tensor:
    """Return the network's logits where nothing is known, (1, L, K). They depend on neither image
    nor ids."""
    length, size = network.geometry.tokens, network.geometry.image_size
    image = network.pos_embed.new_zeros(1, 3, size, size)
    ids = torch.zeros(1, length, dtype=torch.int64, device=image.device)
    logits = network.logits(image, ids, torch.ones_like(ids, dtype=torch.bool), 0)
    return logits[..., : network.geometry.codebook_size]
