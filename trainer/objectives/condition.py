"""What a conditional network is told of its images: their classes, which now and then are
dropped, so that it learns to predict without them, too (classifier-free guidance, arXiv
2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.shards.manifest import Manifest
from model.config import UNUSED_CLASS_IDS, ConditionalConfig, TransformerConfig
from model.errors import ConfigError
from model.randomness import uniforms
from trainer.config.schema import RunConfig


class Condition(NamedTuple):
    """What is told of a micro batch.

    classes: labels, (B,) int64. dropped: (B,) bool, True where the class is not told; None where
    all are told.
    """

    classes: Tensor
    dropped: Tensor | None = None


def reads_labels(config: RunConfig) -> bool:
    """Whether a run learns from the labels of its token data sets."""
    return config.objective == "addp" and config.condition == "classes"


def conditional_sizes(config: RunConfig, manifests: Sequence[Manifest]) -> TransformerConfig:
    """Return the sizes of the ADDP network with the classes of the data, where the run is
    conditional.

    Raises ConfigError for data sets of different classes, or of so few or many that there is no
    condition.
    """
    sizes = config.addp.sizes
    if not reads_labels(config):
        return sizes
    classes = manifests[0].classes
    data = str(config.data.tokens or ", ".join(config.data.mixture))
    if any(manifest.classes != classes for manifest in manifests):
        raise ConfigError(
            f"condition = classes: the data sets {data} have different classes; make them with one "
            "list of names (`addp tokenize plan --class-names FILE`), or leave condition at none"
        )
    if len(classes) < 2:
        raise ConfigError(
            f"condition = classes: {data} has no labels to learn from, as all of its images are of "
            f"the class {classes[0]!r}; make it from one folder for each class, or leave condition "
            "at none"
        )
    if len(classes) > UNUSED_CLASS_IDS:
        raise ConfigError(
            f"condition = classes: {data} has {len(classes):,} classes, and the vocabulary has ids "
            f"for {UNUSED_CLASS_IDS:,}; join some, or leave condition at none"
        )
    return ConditionalConfig(**sizes.model_dump(), classes=classes)


def drawn_condition(config: RunConfig, labels: NDArray[np.int64], start: int) -> Condition | None:
    """Return what is told of the samples with global indices start, start + 1, ..., whose labels
    are (B,); None where nothing is told of any. Each sample is decided about by its own index."""
    draws = uniforms(config.seed, "condition", start, len(labels), 1)[:, 0]
    dropped = draws < config.condition_dropout
    if dropped.all():
        return None
    told = None if not dropped.any() else torch.from_numpy(dropped)
    return Condition(torch.from_numpy(labels), told)


def blank_condition(config: RunConfig, count: int) -> Condition | None:
    """Return a condition of `count` samples as most micro batches have it, without any data."""
    if not reads_labels(config) or config.condition_dropout == 1:
        return None
    dropped = torch.arange(count) == 0 if config.condition_dropout else None
    return Condition(torch.zeros(count, dtype=torch.int64), dropped)
