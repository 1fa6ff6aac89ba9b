"""Recognition: classifiers on frozen features, and the accuracy of a trained classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.classifier import Classifier
from model.errors import ConfigError
from trainer.evaluation.crops import Chunk
from trainer.evaluation.measures.features import Features, extractors, features_of
from trainer.evaluation.measures.intervals import MAIN, shares
from trainer.evaluation.task import Task


def probe(task: Task, score: Callable[[Features, Features], dict[str, Tensor]]) -> dict[str, Any]:
    """Score each kind of features, by all ranks together.

    score(train, test) -> which test images came out right, (N,) bool, by metric, on rank 0. Returns
    all metrics, with their intervals, on rank 0, and none on the other ranks. Raises ADDPError.
    """
    right: dict[str, dict[str, Tensor]] = {}
    for name, extract in extractors(task).items():
        train, test = (features_of(task, split, name, extract) for split in ("train", "val"))
        with task.progress(f"scores of {name} features", 1):
            right[name] = score(train, test)
    if task.collectives.rank:
        return {}
    most = int(train.of_label.argmax())
    of_most = int(test.of_label[most]) if most < len(test.of_label) else 0
    return {**shares(right), "majority_class": of_most / test.count, "images": test.count}


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
    def work(chunk: Chunk) -> Tensor:
        logits = network.logits(chunk.on(task.device))
        best = logits.topk(min(5, logits.shape[1]), 1).indices.cpu()
        right = best == label_of[chunk.labels][:, None]
        return torch.stack([right[:, 0], right.any(1)])

    chunks = task.over_images("images", crops, work)
    if task.collectives.rank:
        return {}
    first, five = torch.cat(chunks, 1)
    return {**shares({MAIN: {"top1": first, "top5": five}}), "images": len(first)}
