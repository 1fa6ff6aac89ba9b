"""Reading a configuration: defaults < run file (YAML, differences only) < key=value on the command
line.

Unknown keys are refused with the nearest known one, and so is what no single key shows to be wrong.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_pipeline.storage import is_remote
from data_pipeline.storage.output import check_apart, is_within
from model.documents import MIB, parse_yaml, read_file, show
from model.errors import ConfigError
from trainer.config.changes import check_names
from trainer.config.schema import RunConfig
from trainer.config.uses import refuse_unused
from trainer.engine.precision import MODES
from trainer.recipes import recipe_names

LARGEST_FILE = MIB  # bytes of a run file
_DEEPEST_KEY = 8  # parts of an override's key
_LONGEST_KEY = 100  # characters that are compared with the known keys
_MOST_TOLD = 5  # mistakes in one message


def load_config(path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """What a user configures.

    Raises ConfigError that names the file or argument, the key and, for unknown ones, the nearest
    known key, and for keys that the objective does not use; and StorageError for a url that is
    none."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            content = read_file(path, LARGEST_FILE, ConfigError)
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is no configuration file {path}, and no recipe of that name; there are "
                f"{', '.join(recipe_names())}"
            ) from error
        values = _mapping(content, str(path))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(
                f"{show(override)} is no override; write key=value, as in batch.micro=32"
            )
        _set(
            values, _parts(key, override), parse_yaml(value, show(override), ConfigError), override
        )
    source = str(path or "the command line")
    config = checked_config(values, source)
    refuse_unused(config, config.objective, source)
    return config


def checked_config(values: dict[str, Any], source: str) -> RunConfig:
    """source: where the values come from, for messages. Raises as `load_config` does."""
    config = _validated(values, source)
    _check_together(config)
    return config.model_copy(update={"run": config.run.absolute()})


def resolved_config(content: bytes, source: str) -> RunConfig:
    """What a run wrote down, maybe of an earlier version, maybe on another machine: without the
    checks that only a start needs. Raises ConfigError, StorageError."""
    return _validated(_mapping(content, source), source)


def _mapping(content: bytes, source: str) -> dict[str, Any]:
    values = parse_yaml(content, source, ConfigError) or {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds a {type(values).__name__}, not a mapping of keys to values"
        )
    return values


def _validated(values: dict[str, Any], source: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from error


def _check_together(config: RunConfig) -> None:
    """What no single key shows, and only a start needs. Raises ConfigError, and StorageError for a
    url that is none."""
    check_names(config.resume.allow, RunConfig)
    is_remote(config.run)  # raises where it is a url: a run folder lies on a disk
    _check_places(config)
    schedule = config.schedule
    if schedule.warmup >= schedule.total:
        raise ConfigError(
            f"schedule.warmup = {schedule.warmup:g} {schedule.unit} is not shorter than "
            f"schedule.total = {schedule.total:g}: the learning rate would never fall; lower one, "
            "or raise the other"
        )
    if config.zero_stage < MODES[config.precision].least_stage:
        others = [name for name, mode in MODES.items() if mode.least_stage == 0]
        raise ConfigError(
            f"precision = {config.precision} with zero_stage = {config.zero_stage} trains wrongly "
            f"in DeepSpeed; use zero_stage = {MODES[config.precision].least_stage}, or "
            f"{' or '.join(others)}"
        )
    least = {"none": 0, "optimizer": 1, "parameters": 3}[config.offload]
    if config.zero_stage < least:
        raise ConfigError(
            f"offload = {config.offload} needs zero_stage = {least} or more, not "
            f"{config.zero_stage}"
        )
    if config.collective_timeout <= config.health.hang:
        raise ConfigError(
            f"collective_timeout = {config.collective_timeout:g} is not above health.hang = "
            f"{config.health.hang:g}: ranks would give up another that may still be at work; make "
            "health.hang shorter (0: no watchdog), or collective_timeout longer"
        )
    permanent, every = config.checkpoint.permanent_every, config.checkpoint.every
    if permanent % every:
        raise ConfigError(
            f"checkpoint.permanent_every = {permanent} is no multiple of checkpoint.every = "
            f"{every}; {permanent // every * every or every} or {(permanent // every + 1) * every} "
            "would be"
        )


def _check_places(config: RunConfig) -> None:
    """Raises ConfigError where a file is in the way, and where a run would write into what it reads
    or copies."""
    upload, images = config.checkpoint.upload, config.data.images
    for key, place in (
        ("run", config.run),
        ("data.cache", config.data.cache),
        ("checkpoint.upload", upload),
    ):
        if (
            place is not None
            and not is_remote(place)
            and os.access(place, os.F_OK)
            and not Path(place).is_dir()
        ):
            raise ConfigError(f"{key} = {place} is a file; name a folder")
    if upload is not None and not is_remote(upload) and is_within(upload, config.run):
        raise ConfigError(
            f"checkpoint.upload = {upload} is the run's own folder {config.run}, or in it; name "
            "one that outlives it"
        )
    if images is not None:
        check_apart(config.run, images, "run")


def _parts(key: str, override: str) -> list[str]:
    parts = key.split(".")
    if len(parts) > _DEEPEST_KEY or any(not part or part != part.strip() for part in parts):
        raise ConfigError(
            f"{show(override)} names no key before the =; write key=value, as in batch.micro=32"
        )
    return parts


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{show(override)}: {show(key)} is a value, not a section")
    values[keys[-1]] = value


def _explain(error: ValidationError, source: str) -> str:
    found = error.errors(include_url=False)
    problems = [_problem(item) for item in found[:_MOST_TOLD]]
    more = len(found) - len(problems)
    return f"in {source}: " + "; ".join(problems) + (f"; and {more} more" if more else "")


def _problem(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(part if re.fullmatch(r"\w{1,64}", part) else show(part) for part in location)
    if item["type"] == "extra_forbidden":
        known = list(_model_at(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1][:_LONGEST_KEY], known, n=1, cutoff=0)
        return f"unknown key {name}; the nearest known one is {'.'.join([*location[:-1], *near])}"
    return (
        f"{name or 'configuration'}: {item['msg'].removeprefix('Value error, ')} (got "
        f"{show(item['input'])})"
    )


def _model_at(location: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = RunConfig
    for key in location:
        annotation = model.model_fields[key].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return model
