"""Which objectives use a key of the configuration. Each says so itself, or the section that holds
it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from model.errors import ConfigError

Objective = Literal["tokenizer", "mage", "addp", "classify"]


@dataclass(frozen=True)
class UsedBy:
    """Stands in the annotation of a key or section: `Annotated[float, UsedBy("mage", "addp")]`."""

    objectives: tuple[Objective, ...]

    def __init__(self, *objectives: Objective) -> None:
        object.__setattr__(self, "objectives", objectives)


ALL = UsedBy(*get_args(Objective))


def statement(field: FieldInfo) -> UsedBy | None:
    """What a key or section says itself."""
    return next((found for found in field.metadata if isinstance(found, UsedBy)), None)


def users(
    model: type[BaseModel], section: UsedBy | None = None, prefix: str = ""
) -> dict[str, UsedBy]:
    """Of every key that holds a value, as `optimizer.base_lr`."""
    found: dict[str, UsedBy] = {}
    for name, field in model.model_fields.items():
        own, kind = statement(field) or section, field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= users(kind, own, f"{prefix}{name}.")
        else:
            assert own is not None, f"{prefix}{name} does not say which objectives use it"
            found[prefix + name] = own
    return found


def refuse_unused(config: BaseModel, objective: str, source: str) -> None:
    """Raises ConfigError for keys that were set and that the objective does not use.

    A configuration that states every key, as a run writes it down, means those only that differ
    from the defaults.
    """
    of = users(type(config))
    values = dict(_stated(config))
    if values.keys() == of.keys():
        defaults = dict(_values(type(config)()))
        values = {key: value for key, value in values.items() if value != defaults[key]}
    unused = {
        _as_written(key): of[key].objectives
        for key in values
        if objective not in of[key].objectives
    }
    if unused:
        named = "; ".join(f"{key} (used by {', '.join(by)})" for key, by in unused.items())
        raise ConfigError(
            f"in {source}: objective {objective} does not use {named}. Leave "
            f"{'it' if len(unused) == 1 else 'them'} out, or set another objective"
        )


def _as_written(key: str) -> str:
    """A named size stands for all sizes."""
    before, sizes, _ = key.partition(".sizes.")
    return before + sizes.removesuffix(".")


def _stated(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that a file or a command line set."""
    for name in type(config).model_fields:
        if name in config.model_fields_set:
            yield from _leaves(getattr(config, name), prefix + name, _stated)


def _values(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(config).model_fields:
        yield from _leaves(getattr(config, name), prefix + name, _values)


def _leaves(value: Any, key: str, walk: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        yield from walk(value, key + ".")
    else:
        yield key, value
