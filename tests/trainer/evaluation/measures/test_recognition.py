from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from trainer.evaluation.measures.recognition import knn, linear


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, torch.Tensor, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 400)
    x = (centres[labels] + rng.normal(0, 1.5, (400, 16))).astype(np.float32)
    y = torch.from_numpy(labels)
    return x[:300], y[:300], x[300:], y[300:]


def test_knn_is_the_weighted_vote(data: tuple) -> None:
    train, labels, test, test_labels = data
    scores = knn(*data, torch.device("cpu"))
    assert list(scores) == ["top1_k10", "top1_k20", "top1_k100", "top1_k200"]
    for k in (10, 20, 100, 200):
        other = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        other.fit(normalize(train), labels.numpy())
        assert scores[f"top1_k{k}"] == pytest.approx(
            other.score(normalize(test), test_labels.numpy())
        )
    assert scores["top1_k10"] > 0.5


def test_few_images_have_few_neighbours(data: tuple) -> None:
    train, labels, test, test_labels = data
    assert list(knn(train[:15], labels[:15], test, test_labels, torch.device("cpu"))) == [
        "top1_k10"
    ]
    assert list(knn(train[:4], labels[:4], test, test_labels, torch.device("cpu"))) == ["top1_k4"]


def test_linear_probe(data: tuple) -> None:
    assert linear(*data)["top1"] > 0.6
