"""Recognition: nearest neighbours and logistic regression on frozen features, and the accuracy of a
classifier.

Features are the mean of the patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from data_pipeline.images.split import Split
from model.classifier import Classifier
from model.encoder import Encoder
from model.errors import ConfigError
from model.networks import build
from trainer.evaluation.task import Task

NEIGHBOURS = (10, 20, 100, 200)
_TEMPERATURE = 0.07
_AT_ONCE = 1024  # queries
# Of the logistic regression; fixed beforehand, the same for every kind of feature.
_INVERSE_PENALTY = 0.01

Features = NDArray[np.float32]
Extract = Callable[[Tensor], Features]  # uint8 (B, 3, H, W) -> (B, D)


def probe(task: Task, score: Callable[..., dict[str, float]]) -> dict[str, Any]:
    """Score each kind of features, by all ranks together.

    score(train, labels, test, test_labels) -> metrics, on features (N, D) and labels (N,). Returns
    all metrics on rank 0, and none on the other ranks. Raises ADDPError.
    """
    metrics: dict[str, Any] = {}
    for name, extract in _extractors(task).items():
        train, labels = _features(task, "train", name, extract)
        test, test_labels = _features(task, "val", name, extract)
        if task.collectives.rank == 0:
            prefix = "" if name == "trained" else f"{name}_"
            with task.progress(f"scores of {name} features", 1):
                scores = score(train, labels, test, test_labels)
            metrics |= {f"{prefix}{key}": value for key, value in scores.items()}
            most = labels.bincount().argmax()
            metrics["majority_class"] = float((test_labels == most).float().mean())
            metrics["images"] = len(test_labels)
    return metrics


def _extractors(task: Task) -> dict[str, Extract]:
    """What features are taken from: the trained encoder; with `baselines` also an untrained one,
    and the pixels themselves."""
    assert isinstance(task.network, Encoder)
    extractors: dict[str, Extract] = {"trained": _features_of(task.network)}
    if task.options.baselines:
        torch.manual_seed(task.config.seed)
        fresh = build("addp", task.config.addp.sizes, task.config.geometry).to(task.device).eval()
        assert isinstance(fresh, Encoder)
        extractors["untrained"] = _features_of(fresh)
        extractors["pixels"] = lambda pixels: pixels.flatten(1).float().div(255).numpy()
    return extractors


def _features_of(network: Encoder) -> Extract:
    @torch.no_grad()
    def extract(pixels: Tensor) -> Features:
        images = pixels.to(network.pos_embed.device).float() / 255
        patches = network.encode(images)[:, 1:]  # after the class token
        return patches.mean(1).float().cpu().numpy()

    return extract


def _features(task: Task, split: Split, name: str, extract: Extract) -> tuple[Features, Tensor]:
    """Extract the features (N, D) and labels (N,) of a split, once for a checkpoint, whichever
    benchmark asks first.

    Returns them on rank 0, and empty ones on the other ranks.
    """

    def compute() -> tuple[Features, Tensor]:
        crops = task.crops(split)

        def work(number: int) -> tuple[Features, Tensor]:
            chunk = crops.read(number)
            return extract(chunk.pixels), chunk.labels

        chunks = task.over(f"features of {split}", crops.chunks, work)
        if not chunks:
            return np.zeros((0, 1), np.float32), torch.zeros(0)
        return np.concatenate([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])

    return task.once(("features", split, name), compute)


def knn(
    train: Features, labels: Tensor, test: Features, test_labels: Tensor, device: torch.device
) -> dict[str, float]:
    """Return the top-1 of a vote of the k nearest by cosine, each weighted by exp(cosine / 0.07).

    Features (N, D), labels (N,). The protocol is that of Wu et al. 2018 (arXiv 1805.01978) and DINO
    (arXiv 2104.14294). A k above the number of training images is left out.
    """
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
    """Return the top-1 of logistic regression on standardised features (N, D), by L-BFGS: it takes
    minutes where MAE's protocol takes hours."""
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000)
    )
    classifier.fit(train, labels.numpy())
    return {"top1": float(classifier.score(test, test_labels.numpy()))}


def classifier_accuracy(task: Task) -> dict[str, Any]:
    """Measure top-1 and top-5 of a classifier on held-out images, by all ranks together.

    Classes are matched by name: the images may lack some, or have them in another order. Returns
    the metrics on rank 0, and none on the other ranks. Raises ADDPError, also for a class that the
    classifier does not know.
    """
    network, crops = task.network, task.crops("val")
    assert isinstance(network, Classifier)
    known = network.config.classes
    unknown = [name for name in crops.classes if name not in known]
    if unknown:
        raise ConfigError(
            f"the classifier knows no class {unknown[0]}; its classes: {known[:5]} ..."
        )
    label_of = torch.tensor([known.index(name) for name in crops.classes])

    @torch.no_grad()
    def work(number: int) -> tuple[int, int, int]:
        chunk = crops.read(number)
        logits = network.logits(chunk.pixels.to(task.device).float() / 255)
        best = logits.topk(min(5, logits.shape[1]), 1).indices.cpu()
        right = best == label_of[chunk.labels][:, None]
        return int(right[:, 0].sum()), int(right.sum()), len(right)

    chunks = task.over("images", crops.chunks, work)
    if task.collectives.rank:
        return {}
    first, five, count = (sum(column) for column in zip(*chunks, strict=True))
    return {"top1": first / count, "top5": five / count, "images": count}
