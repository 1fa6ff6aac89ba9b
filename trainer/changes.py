"""What may change in a configuration when a run goes on: each key is either free, or changes the optimisation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from model.errors import ConfigError

# The run that comes out is the same, or a checkpoint's facts prove that it is (data sets and frozen networks by their
# fingerprints). A section's name stands for all its keys, also for those that it gets one day.
FREE = (
    "run", "log_every", "wandb", "resume.allow", "output_bias", "optimizer.kernel", "zero_stage", "offload",
    "recompute_every", "deterministic", "expect_ranks",
    "data.tokens", "data.mixture", "data.pictures", "data.cache", "data.cache_gib", "data.on_bad_shard",
    "data.patience", "tokenizer.weights", "predictor.weights", "addp.weights",
    "checkpoint.every", "checkpoint.keep", "checkpoint.permanent_every", "checkpoint.asynchronous", "checkpoint.upload",
    "checkpoint.patience", "checkpoint.lease",
    "health.spikes", "health.loss_deviations", "health.norm_factor", "health.consecutive", "health.history",
    "health.skip", "health.rewinds", "health.skips", "health.hang",
)  # fmt: skip
TRAINING = (
    "objective", "seed", "data.held_out", "data.views", "data.window", "data.stripes", "data.tail",
    "tokenizer.sizes", "predictor.sizes", "addp.sizes", "classifier", "augmentation", "tokenizer_loss",
    "mask_ratio_scope", "label_smoothing", "batch.global_batch", "batch.micro", "optimizer.name", "optimizer.base_lr",
    "optimizer.betas", "optimizer.eps", "optimizer.trust", "optimizer.weight_decay", "optimizer.clip", "schedule",
    "precision", "ema_decay",
)  # fmt: skip


class Change(NamedTuple):
    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that holds a value, as `optimizer.base_lr`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def within(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key, or a section that holds it, is among the names."""
    return any(key == name or key.startswith(name + ".") for name in names)


def changes(before: dict[str, Any], now: BaseModel) -> list[Change]:
    """Keys whose values differ, but for the permission itself. before: a configuration as JSON, maybe of an older
    version; what it does not have says nothing."""
    found, values = [], now.model_dump(mode="json")
    for key in keys_of(type(now)):
        if key == "resume.allow":
            continue
        old, new = _value(before, key), _value(values, key)
        if old is not _ABSENT and old != new:
            found.append(Change(key, old, new))
    return found


_ABSENT = object()


def _value(values: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return _ABSENT
        values = values[name]
    return values


def forbidden(found: list[Change], allow: tuple[str, ...]) -> list[Change]:
    """Those that change the optimisation and are not allowed."""
    return [change for change in found if not within(change.key, FREE) and not within(change.key, allow)]


def check_names(allow: tuple[str, ...], model: type[BaseModel]) -> None:
    """Raises ConfigError for a name that is neither a key nor a section."""
    known = {".".join(key.split(".")[:depth]) for key in keys_of(model) for depth in range(1, key.count(".") + 2)}
    for name in allow:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ConfigError(f"resume.allow: there is no key {name}; the nearest known one is {near[0]}")
