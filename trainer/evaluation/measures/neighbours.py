"""A vote of the nearest neighbours, in blocks and over ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.evaluation.measures.features import Block, Features

NEIGHBOURS = (10, 20, 100, 200)
_TEMPERATURE = 0.07
_LOW = 2**32 - 1


def knn(train: Features, test: Features) -> dict[str, Tensor]:
    """Return which test images, (N,) bool for each k, a vote of the k nearest by cosine classifies
    rightly, each weighted by exp(cosine / 0.07).

    The protocol is that of Wu et al. 2018 (arXiv 1805.01978) and DINO (arXiv 2104.14294). A k above
    the number of training images is left out. Called on all ranks together; returns them
    on rank 0, and none on the other ranks.

        test blocks of all ranks      one after another on every rank
               |
        nearest of this rank's        train block by train block; k keys a query stay
               |
        nearest of all ranks          on rank 0, which lets them vote
    """
    ranks, device = train.collectives, train.device
    counts = [k for k in NEIGHBOURS if k <= train.count] or [train.count]
    right: list[Tensor] = []
    own = iter(test)
    for _ in range(test.rounds):
        block = next(own, None)
        asked_here = Block(*(part.cpu() for part in block)) if block else None
        for asked in filter(None, ranks.all_gather(asked_here)):
            queries = F.normalize(asked.features.to(device), dim=1)
            best = torch.empty(len(queries), 0, dtype=torch.long, device=device)
            for keys, labels in train:
                cosine = queries @ F.normalize(keys, dim=1).T
                best = _nearest([best, packed(cosine, labels)], counts[-1])
            told = ranks.collect(best.cpu())
            if ranks.rank == 0:
                merged = _nearest(told, counts[-1])
                right.append(_votes(merged, counts, len(train.of_label), asked.labels))
    if ranks.rank:
        return {}
    return {f"top1_k{k}": of_k for k, of_k in zip(counts, torch.cat(right, 1), strict=True)}


def packed(cosine: Tensor, labels: Tensor) -> Tensor:
    """Put float32 cosines (Q, N) and the labels of their columns (N,) into int64 (Q, N) that are
    ordered as the cosines are, and then by label.

    Two that are equal count the same in a vote. So which k are the largest does not depend on the
    order in which blocks and ranks are searched.
    """
    return (_flipped(cosine.contiguous().view(torch.int32)).long() << 32) | labels


def unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and labels of `packed`."""
    return _flipped((keys >> 32).int()).view(torch.float32), keys & _LOW


def _flipped(bits: Tensor) -> Tensor:
    """Turn the bits of float32, as int32, into integers of the same order, and back: those of
    negative numbers ascend with the number's size."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _nearest(keys: list[Tensor], most: int) -> Tensor:
    together = torch.cat(keys, 1)
    return together.topk(min(most, together.shape[1]), dim=1).values


def _votes(keys: Tensor, counts: list[int], classes: int, truth: Tensor) -> Tensor:
    """Which queries are classified rightly for each k, (counts, Q) bool. keys: sorted, (Q, K).
    truth: (Q,)."""
    cosine, labels = unpacked(keys)
    votes = (cosine.double() / _TEMPERATURE).exp()
    right = []
    for k in counts:
        totals = votes.new_zeros(len(keys), classes).scatter_add_(1, labels[:, :k], votes[:, :k])
        right.append(totals.argmax(1) == truth)
    return torch.stack(right)
