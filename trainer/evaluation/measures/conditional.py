"""How often a classifier that has seen real images only recognises the class of a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.addp import ADDP
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.measures.features import features_of
from trainer.evaluation.measures.fidelity import EfficientNet
from trainer.evaluation.measures.intervals import share_interval
from trainer.evaluation.measures.linear_probe import LinearProbe
from trainer.evaluation.sample_set import read_chunk
from trainer.evaluation.task import Task


def recognised_samples(task: Task) -> dict[str, Any]:
    """Fit logistic regression to packaged features of real training images, and apply it to
    held-out ones and to samples, by all ranks together.

    Returns the metrics on rank 0, and none on the other ranks. Raises ADDPError.
    """
    network = EfficientNet(task.device)

    def of_bytes(pixels: Tensor) -> Tensor:
        return network(pixels)[0].to(task.device)

    def extract(images: Tensor) -> Tensor:
        return of_bytes((images * 255).round().byte())

    train, test = (features_of(task, split, network.name, extract) for split in ("train", "val"))
    with task.progress("the classifier of real images", 1):
        probe = LinearProbe(train)
    right = sum(int((probe(x) == labels).sum()) for x, labels in test)
    on_real = sum(task.collectives.all_gather(right)) / test.count

    samples = task.samples
    assert isinstance(task.network, ADDP)
    label_of = torch.tensor(labels_in(task.network.classes, task.crops("train").classes))

    def work(number: int) -> tuple[int, list[int]]:
        truth = samples.labels(number)
        assert truth is not None
        found = label_of[probe(of_bytes(read_chunk(samples.file(number)))).cpu()]
        return int((found == truth).sum()), truth.tolist()

    chunks = task.over("classes of samples", samples.chunks, work)
    if task.collectives.rank:
        return {}
    right = sum(count for count, _ in chunks)
    asked = torch.tensor([label for _, labels in chunks for label in labels])
    share = right / len(asked)
    low, high = share_interval(share, len(asked))
    return {
        "recognised": share,
        "recognised_low": low,
        "recognised_high": high,
        "real": on_real,
        "chance": float(asked.bincount().max()) / len(asked),
        "samples": len(asked),
        "images": test.count,
    }
