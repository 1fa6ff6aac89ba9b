"""Every key of the configuration with its default, its meaning, and the objectives that use it."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from trainer.config.schema import RunConfig
from trainer.objectives.registry import OBJECTIVES, users_of


def documented_defaults() -> str:
    """Return the YAML that lists every key: its default, its meaning, its choices, its users."""
    lines = [
        "# Every key with its default. Written by `addp config --defaults`; a run file holds "
        "differences only.",
        "",
    ]
    _document(RunConfig(), lines, "", "")
    return "\n".join(lines) + "\n"


def _document(section: BaseModel, lines: list[str], indent: str, prefix: str) -> None:
    """Append a line for each key of a section, and for those of the sections in it."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), prefix + name
        if isinstance(value, BaseModel):
            meaning = f"{field.description or ''}{_users(key, prefix)}".lstrip()
            lines.append(f"{indent}{name}:" + (f"  # {meaning}" if meaning else ""))
            _document(value, lines, indent + "  ", key + ".")
        else:
            dumped = yaml.safe_dump(
                section.model_dump(mode="json")[name], default_flow_style=True
            ).split("\n")[0]
            lines.append(
                f"{indent}{name}: {dumped}  # "
                f"{field.description}{_choices(field.annotation)}{_users(key, prefix)}"
            )


def _users(key: str, section: str) -> str:
    """Return who uses a key; "" where all objectives do, or where its section has said so."""
    by = users_of(key)
    said = by == tuple(OBJECTIVES) or (section and by == users_of(section.rstrip(".")))
    return "" if said else f" (used by {', '.join(by)})"


def _choices(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is not Literal:
        return ""
    return f" ({' | '.join(map(str, get_args(annotation)))})"
