"""What a conditional network is told of its images: their classes, which now and then are
dropped, so that it learns to predict without them, too (classifier-free guidance, arXiv
2207.12598). ADDP is told what its predictor is told, from which it learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.shards.manifest import Manifest
from model.conditioning import NOT_TOLD, classes_of
from model.config import UNUSED_CLASS_IDS, ConditionalConfig, TransformerConfig
from model.documents import printable
from model.errors import ConfigError
from model.predictor import TokenPredictor
from model.randomness import uniforms
from trainer.config.schema import RunConfig
from trainer.objectives.registry import trained_sizes


def reads_labels(config: RunConfig) -> bool:
    """Whether a run learns from the labels of its token data sets."""
    return config.objective in ("mage", "addp") and config.condition == "classes"


def tells_classes(config: RunConfig) -> bool:
    """Whether a run tells its network the class of any sample."""
    return reads_labels(config) and config.condition_dropout < 1


def conditional_sizes(config: RunConfig, manifests: Sequence[Manifest]) -> TransformerConfig:
    """Return the sizes of the network that is trained, with the classes of the data where the run
    is conditional.

    Raises ConfigError for data sets of different classes, or of so few or many that there is no
    condition.
    """
    sizes: TransformerConfig = trained_sizes(config)
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


def check_predictor(config: RunConfig, predictor: TokenPredictor, sizes: TransformerConfig) -> None:
    """Raise ConfigError where ADDP would learn classes from a predictor that does not know them:
    what it is taught would not depend on them."""
    if not tells_classes(config):
        return
    file = config.predictor.weights
    if not predictor.classes:
        raise ConfigError(
            f"condition = classes: the predictor in {file} knows no classes, so ADDP would learn "
            "nothing of them; train it with condition=classes first, from its own weights if you "
            "like (docs/generation.md)"
        )
    if predictor.classes != classes_of(sizes):
        raise ConfigError(
            f"condition = classes: the predictor in {file} knows other classes than the data: "
            f"{', '.join(map(printable, predictor.classes[:5]))}, ... in place of "
            f"{', '.join(map(printable, classes_of(sizes)[:5]))}, ...; train it on the classes of "
            "these data"
        )


def told_classes(config: RunConfig, labels: NDArray[np.int64], start: int) -> Tensor | None:
    """Return the classes that the network is told of the samples with global indices start,
    start + 1, ...: (B,) int64, `NOT_TOLD` where one is dropped; None in a run that tells none.
    labels: theirs, (B,). Each sample is decided about by its own index."""
    if not tells_classes(config):
        return None
    draws = uniforms(config.seed, "condition", start, len(labels), 1)[:, 0]
    return torch.from_numpy(np.where(draws < config.condition_dropout, NOT_TOLD, labels))


def blank_classes(config: RunConfig, count: int) -> Tensor | None:
    """Return the classes of `count` samples without any data, or None as `told_classes` does."""
    if not tells_classes(config):
        return None
    return torch.zeros(count, dtype=torch.int64)
