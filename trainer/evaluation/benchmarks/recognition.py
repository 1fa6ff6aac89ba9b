"""What frozen features are worth: nearest neighbours, and logistic regression. Both on the mean of
the patch tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from model.encoder import Encoder

NEIGHBOURS = (10, 20, 100, 200)
_TEMPERATURE = 0.07
_AT_ONCE = 1024  # queries
_INVERSE_PENALTY = (
    0.01  # of the logistic regression; fixed beforehand, the same for every kind of feature
)

Features = NDArray[np.float32]


@torch.no_grad()
def encoder_features(network: Encoder, pixels: Tensor) -> Features:
    """uint8 (B, 3, H, W) -> mean of the patch tokens, (B, D)."""
    device = network.pos_embed.device
    return network.encode(pixels.to(device).float() / 255)[:, 1:].mean(1).float().cpu().numpy()


def knn(
    train: Features, labels: Tensor, test: Features, test_labels: Tensor, device: torch.device
) -> dict[str, float]:
    """Top-1 of a vote of the k nearest by cosine, each weighted by exp(cosine / 0.07) (Wu et al.
    2018, arXiv 1805.01978; DINO, arXiv 2104.14294). A k above the number of training images is left
    out."""
    keys = F.normalize(torch.from_numpy(train).to(device), dim=1)
    labels, classes = labels.to(device), int(labels.max()) + 1
    counts = [k for k in NEIGHBOURS if k <= len(keys)] or [len(keys)]
    right = dict.fromkeys(counts, 0)
    for start in range(0, len(test), _AT_ONCE):
        queries = F.normalize(torch.from_numpy(test[start : start + _AT_ONCE]).to(device), dim=1)
        cosine, nearest = (queries @ keys.T).topk(counts[-1], dim=1)
        votes = (cosine / _TEMPERATURE).exp()
        truth = test_labels[start : start + _AT_ONCE].to(device)
        for k in counts:
            totals = torch.zeros(len(queries), classes, device=device)
            totals.scatter_add_(1, labels[nearest[:, :k]], votes[:, :k])
            right[k] += int((totals.argmax(1) == truth).sum())
    return {f"top1_k{k}": right[k] / len(test) for k in counts}


def linear(
    train: Features, labels: Tensor, test: Features, test_labels: Tensor
) -> dict[str, float]:
    """Top-1 of logistic regression on standardised features, by L-BFGS: minutes where MAE's
    protocol takes hours."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000))
    probe.fit(train, labels.numpy())
    return {"top1": float(probe.score(test, test_labels.numpy()))}
