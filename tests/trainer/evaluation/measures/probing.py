"""Scores of made features on any number of ranks and on a device, for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from model.precision import keep_float32
from trainer.distributed.collectives import Collectives
from trainer.distributed.meeting import join_ranks
from trainer.evaluation.measures.features import Block, Features
from trainer.evaluation.measures.linear_probe import LinearProbe, linear
from trainer.evaluation.measures.neighbours import knn

_BLOCK = 37  # 12 blocks of training, and 3 of test images


class Made(NamedTuple):
    """Features (N, D) and labels (N,) of a training and a test set."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def made(classes: int) -> Made:
    """Clusters that overlap, in features of unlike scales; one feature is constant. One class more
    is in the test set only."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 540)
    x = rng.normal(size=(classes, 16))[labels] + rng.normal(0, 1.5, (540, 16))
    x = (x * np.geomspace(0.01, 100, 16) + 10).astype(np.float32)
    x[:, 3] = 7.1
    labels[-5:] = classes
    return Made(x[:440], 3 * labels[:440], x[440:], 3 * labels[440:])


def blocks_of(x: NDArray[np.float32], labels: NDArray[np.int64]) -> list[Block]:
    pairs = zip(*(torch.from_numpy(a).split(_BLOCK) for a in (x, labels)), strict=True)
    return [Block(*pair) for pair in pairs]


def shared(made: Made, ranks: Collectives, device: torch.device) -> tuple[Features, Features]:
    """The blocks are dealt out to the ranks."""
    train, test = (
        Features(blocks_of(*pair)[ranks.rank :: ranks.world_size], ranks, device)
        for pair in (made[:2], made[2:])
    )
    return train, test


def score(arguments: list[str]) -> int:
    """Write the scores of 2 and of 5 classes, and the weights of linear probes, to a file.

    arguments: the file, and the device; without one, the CPU.
    """
    torch.set_num_threads(1)
    keep_float32()
    file, device = (*arguments, "cpu")[:2]
    join_ranks()
    ranks, found = Collectives(), dict[str, Tensor]()
    for classes in (2, 5):
        train, test = shared(made(classes), ranks, torch.device(device))
        scores = knn(train, test) | linear(train, test)
        found |= {f"{classes} {name}": right.double().mean() for name, right in scores.items()}
        for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
            found[f"{classes} {dtype}"] = LinearProbe(train, tolerance, dtype).weights.cpu()
    if ranks.rank == 0:
        save_file(found, Path(file))
    return 0


if __name__ == "__main__":
    sys.exit(score(sys.argv[1:]))
