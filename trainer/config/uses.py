"""Which objectives use a key of the configuration: `trainer/objectives/registry.py` says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from model.errors import ConfigError
from trainer.objectives.registry import users_of


def users(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Return the objectives that use each key, for all keys that hold a value.

    A key has its section's name before it, as in `optimizer.base_lr`.
    """
    known: dict[str, tuple[str, ...]] = {}
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            known |= users(section, f"{prefix}{name}.")
        else:
            known[prefix + name] = users_of(prefix + name)
    return known


def refuse_unused(config: BaseModel, objective: str, source: str) -> None:
    """Raise ConfigError where keys were set that the objective does not use.

    In a configuration that states every key, as a run writes it down, only those count as set that
    differ from the defaults.
    """
    known = users(type(config))
    values = dict(_stated(config))
    if values.keys() == known.keys():
        defaults = dict(_values(type(config)()))
        values = {key: value for key, value in values.items() if value != defaults[key]}
    unused = {_as_written(key): known[key] for key in values if objective not in known[key]}
    if unused:
        named = "; ".join(f"{key} (used by {', '.join(by)})" for key, by in unused.items())
        raise ConfigError(
            f"in {source}: objective {objective} does not use {named}. Leave "
            f"{'it' if len(unused) == 1 else 'them'} out, or set another objective"
        )


def _as_written(key: str) -> str:
    """Return the key that a user has written: a named size (`sizes.size`) stands for all sizes."""
    before, sizes, _ = key.partition(".sizes.")
    return before + sizes.removesuffix(".")


def _stated(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys that a file or a command line has set, with their values."""
    for name in type(config).model_fields:
        if name in config.model_fields_set:
            yield from _leaves(getattr(config, name), prefix + name, _stated)


def _values(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all keys with their values."""
    for name in type(config).model_fields:
        yield from _leaves(getattr(config, name), prefix + name, _values)


def _leaves(value: Any, key: str, walk: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        yield from walk(value, key + ".")
    else:
        yield key, value
