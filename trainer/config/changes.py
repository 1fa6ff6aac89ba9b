"""What may change in a configuration when a run goes on.

Each key is one of three: free; part of the training, so that a change needs a permission; or fixed,
since a checkpoint belongs to one value.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, NamedTuple

from pydantic import BaseModel

from model.errors import ConfigError
from trainer.config import renamed
from trainer.config.uses import users

# A change of these gives the same run, or the run's identity in a checkpoint proves that it does
# (data sets and frozen networks have fingerprints). A section's name stands for all its keys, also
# for those that it gets one day.
FREE = (
    "run",
    "log_every",
    "wandb",
    "resume.allow",
    "output_bias",
    "optimizer.kernel",
    "zero_stage",
    "offload",
    "recompute_every",
    "compile",
    "deterministic",
    "frozen_ahead",
    "expect_ranks",
    "collective_timeout",
    "data.tokens",
    "data.mixture",
    "data.images",
    "data.held_out",
    "detector.split",
    "data.cache",
    "data.cache_gib",
    "data.on_bad_shard",
    "data.retry_seconds",
    "tokenizer.weights",
    "predictor.weights",
    "addp.weights",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.permanent_every",
    "checkpoint.asynchronous",
    "checkpoint.upload",
    "checkpoint.retry_seconds",
    "checkpoint.lease",
    "health.spikes",
    "health.loss_deviations",
    "health.norm_factor",
    "health.consecutive",
    "health.history",
    "health.extra_skip_steps",
    "health.max_rewinds",
    "health.max_nonfinite_steps",
    "health.hang",
)
# Where things lie on a host. They may lie elsewhere on another one: what lies there is compared, by
# its fingerprint.
PLACES = (
    "run",
    "data.tokens",
    "data.images",
    "data.cache",
    "data.cache_gib",
    "tokenizer.weights",
    "predictor.weights",
    "addp.weights",
    "checkpoint.upload",
)
# A change of these gives another run. `resume.allow` permits it, by the name of the key.
TRAINING = (
    "data.views",
    "tokenizer.sizes",
    "predictor.sizes",
    "addp.sizes.positions",
    "addp.sizes.dropout",
    "classifier",
    "augmentation",
    "tokenizer_loss",
    "pixels",
    "segmenter.dropout",
    "segmenter.layer_decay",
    "segmenter.drop_path",
    "segmenter.crops",
    "detector.layer_decay",
    "detector.drop_path",
    "detector.jitter.scale",
    "detector.jitter.flip",
    "mask_ratio_scope",
    "condition_dropout",
    "label_smoothing",
    "batch.micro",
    "optimizer.base_lr",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.trust",
    "optimizer.weight_decay",
    "optimizer.clip",
    "schedule",
    "precision",
    "ema_decay",
)
# The run's identity in a checkpoint refuses another value of these, in every objective that uses
# the key, so that no permission helps.
_ORDER = (
    "the order of the samples depends on it: some would be trained on twice, and others not at all"
)
_SHAPE = "the weights of a checkpoint have the sizes that they were trained with"
_PART = "a checkpoint's network is described by it"
FIXED = {
    "objective": "a checkpoint is of one network",
    "condition": _PART,
    "seed": (
        "samples, masks and dropout are drawn by it: some samples would be trained on twice, and "
        "others not at all"
    ),
    "batch.global_batch": (
        "steps are counted in it: the schedule and the place in the data would be others"
    ),
    "optimizer.name": "a checkpoint holds the moments of one optimizer",
    "data.window": _ORDER,
    "data.stripes": _ORDER,
    "data.tail": _ORDER,
    "addp.sizes.dim": _SHAPE,
    "addp.sizes.depth": _SHAPE,
    "addp.sizes.heads": _SHAPE,
    "addp.sizes.decoder_depth": _SHAPE,
    "addp.sizes.decoder_heads": _SHAPE,
    "segmenter.blocks": _PART,
    "segmenter.channels": _SHAPE,
    "segmenter.auxiliary_channels": _SHAPE,
    "segmenter.tokenizer_norm": _SHAPE,
    "detector.window": _SHAPE,
    "detector.global_blocks": _SHAPE,
    "detector.channels": _SHAPE,
    "detector.linear_width": _SHAPE,
    "detector.anchor_size": _PART,
    "detector.anchors_per_image": _PART,
    "detector.regions_per_image": _PART,
    "detector.proposals": _PART,
    "detector.tokenizer_norm": _SHAPE,
    "detector.jitter.size": _SHAPE,
}


class Change(NamedTuple):
    """A key whose value has changed."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def within(key: str, names: tuple[str, ...]) -> bool:
    """Return whether a key, or a section that holds it, is among the names."""
    return any(key == name or key.startswith(name + ".") for name in names)


def changes(before: dict[str, Any], now: BaseModel) -> list[Change]:
    """Return the keys that the objective uses and whose values differ, but for `resume.allow`.

    before: a configuration from disk, as JSON, maybe of an earlier version. A key that it does not
    have has not changed. Nor has one that is to be settled at the start (`compile: auto`).
    """
    changed, values = [], now.model_dump(mode="json")
    before = renamed.with_new_keys(before)
    for key, by in users(type(now)).items():
        if key == "resume.allow" or values["objective"] not in by:
            continue
        old, new = _value(before, key), _value(values, key)
        if old is not _ABSENT and old != new and (key, new) != ("compile", "auto"):
            changed.append(Change(key, old, new))
    return changed


def alike(config: BaseModel) -> dict[str, str]:
    """Return a short digest of the value of each key that must be the same on all ranks."""
    values = config.model_dump(mode="json")
    values["data"]["mixture"] = list(values["data"]["mixture"].values())  # the names are places
    keys = (key for key in users(type(config)) if key not in PLACES)
    return {
        key: hashlib.sha256(json.dumps(_value(values, key)).encode()).hexdigest()[:16]
        for key in keys
    }


_ABSENT = object()


def _value(values: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return _ABSENT
        values = values[name]
    return values


def forbidden(changed: list[Change], allow: tuple[str, ...]) -> list[Change]:
    """Return the changes that give another run and are not allowed."""
    return [change for change in changed if not within(change.key, (*FREE, *allow))]


def check_names(allow: tuple[str, ...], model: type[BaseModel]) -> None:
    """Check the names of `resume.allow`.

    Raises ConfigError for one that is neither a key nor a section, and for a key that cannot change
    while a run goes on.
    """
    known = {
        ".".join(key.split(".")[:depth])
        for key in users(model)
        for depth in range(1, key.count(".") + 2)
    }
    for name in allow:
        if name in renamed.KEYS:
            raise ConfigError(f"resume.allow: {name} is called {renamed.KEYS[name]} now")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ConfigError(
                f"resume.allow: there is no key {name}; the nearest known one is {near[0]}"
            )
        if name in FIXED:
            raise ConfigError(
                f"resume.allow: {name} cannot change while a run goes on: {FIXED[name]}. Keep its "
                "value and take it out of resume.allow, or start another run"
            )
