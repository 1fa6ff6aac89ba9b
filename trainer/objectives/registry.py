"""The objectives that there are: one entry each.

A new objective is a file that holds its class (see `base.py`) and an entry here. The table imports
no torch, so that a configuration is checked, a report is written and `--help` is shown without it;
an objective's own module is imported when it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from trainer.config.schema import RunConfig
    from trainer.objectives.base import Objective


class Entry(NamedTuple):
    """What is known of an objective before its module is imported.

    import_path: of its class, "module:Class".
    title: what a report calls such a run. label: what a plot calls its network.
    network_kind: the kind of the network that its checkpoints export, as `model.weights` names it.
    sizes: the section of the configuration whose `sizes` are those of the network that is trained.
    keys: the keys and sections of the configuration that it uses, beside those that no entry names,
    which every objective uses.
    variants: a key of the configuration, and the titles for some of its values.
    image_size: the key of the side of the images that it trains on, in pixels.
    """

    import_path: str
    title: str
    label: str
    network_kind: str
    sizes: str
    keys: tuple[str, ...]
    variants: tuple[str, Mapping[str, str]] = ("", MappingProxyType({}))
    image_size: str = "tokenizer.sizes.image_size"


TOKEN_KEYS = (
    "data.tokens",
    "data.mixture",
    "data.window",
    "data.stripes",
    "data.tail",
    "data.cache",
    "data.cache_gib",
    "data.on_bad_shard",
    "data.retry_seconds",
    "mask_ratio_scope",
    "output_bias",
)
IMAGE_KEYS = ("data.images", "data.held_out", "data.views")
TRANSFORMER_KEYS = ("label_smoothing", "recompute_every")
CONDITION_KEYS = ("condition", "condition_dropout")

OBJECTIVES: dict[str, Entry] = {
    "tokenizer": Entry(
        "trainer.objectives.tokenizer:TokenizerObjective",
        title="Training of a tokenizer",
        label="tokenizer",
        network_kind="tokenizer",
        sizes="tokenizer",
        keys=(*IMAGE_KEYS, "tokenizer.weights", "tokenizer_loss"),
    ),
    "mage": Entry(
        "trainer.objectives.mage:MageObjective",
        title="Training of a token predictor",
        label="token predictor",
        network_kind="predictor",
        sizes="predictor",
        keys=(*TOKEN_KEYS, *TRANSFORMER_KEYS, *CONDITION_KEYS, "tokenizer.weights", "predictor"),
    ),
    "addp": Entry(
        "trainer.objectives.addp:ADDPObjective",
        title="Pre-training of ADDP",
        label="ADDP",
        network_kind="addp",
        sizes="addp",
        keys=(
            *(*TOKEN_KEYS, *TRANSFORMER_KEYS, "tokenizer.weights", "predictor", "addp"),
            *("data.images", "data.held_out"),  # which its evaluations read
            *(*CONDITION_KEYS, "frozen_ahead"),
        ),
    ),
    "pixels": Entry(
        "trainer.objectives.pixels:PixelsObjective",
        title="Pre-training on masked pixels",
        label="masked pixels",
        network_kind="addp",
        sizes="addp",
        keys=(*IMAGE_KEYS, "recompute_every", "addp", "pixels"),
    ),
    "classify": Entry(
        "trainer.objectives.classify:ClassifyObjective",
        title="Fine-tuning",
        label="classifier",
        network_kind="classifier",
        sizes="addp",
        keys=(*IMAGE_KEYS, *TRANSFORMER_KEYS, "addp", "classifier", "augmentation"),
        variants=("classifier.method", {"linear": "Linear probe of ADDP's encoder"}),
    ),
    "segment": Entry(
        "trainer.objectives.segment:SegmentObjective",
        title="Training of a segmenter",
        label="segmenter",
        network_kind="segmenter",
        sizes="addp",
        keys=("data.images", "recompute_every", "addp", "segmenter"),
        image_size="segmenter.crops.size",
    ),
    "detect": Entry(
        "trainer.objectives.detect:DetectObjective",
        title="Training of a detector",
        label="detector",
        network_kind="detector",
        sizes="addp",
        keys=("data.images", "recompute_every", "addp", "detector"),
        image_size="detector.jitter.size",
    ),
}


def known_objective(name: str) -> str:
    """The name itself. Raises ValueError for one that is not in the table."""
    if name not in OBJECTIVES:
        raise ValueError(f"there is no such objective; choose one of {', '.join(OBJECTIVES)}")
    return name


def users_of(key: str) -> tuple[str, ...]:
    """The objectives that use a key of the configuration, as `optimizer.clip`, or a section."""
    names = {key[:end] for end, char in enumerate(key) if char == "."} | {key}
    stated = tuple(name for name, entry in OBJECTIVES.items() if names & set(entry.keys))
    return stated or tuple(OBJECTIVES)


def trained_sizes(config: RunConfig) -> Any:
    """The configured sizes of the network that is trained."""
    return getattr(config, OBJECTIVES[config.objective].sizes).sizes


def objective_class(name: str) -> type[Objective]:
    """The class of an objective, for what is asked before a run: costs, checks, the next command.
    Imports its module."""
    module, _, class_name = OBJECTIVES[name].import_path.partition(":")
    chosen: type[Objective] = getattr(importlib.import_module(module), class_name)
    return chosen


def make_objective(config: RunConfig, fresh: bool = False, listed: Any = None) -> Objective:
    """The configured objective, with its data opened and its networks made.

    fresh: there is no checkpoint to go on from, so that the network takes the initial weights that
    the configuration names. listed: what `Objective.listed` returned on rank 0, where ranks share
    it. Raises what reading weights and data raises.
    """
    kind = objective_class(config.objective)
    return kind(config, fresh) if listed is None else kind(config, fresh, listed)  # type: ignore[call-arg]
