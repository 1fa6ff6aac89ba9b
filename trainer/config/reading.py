"""Reading a configuration: the defaults, then a run file (YAML, which holds differences only), then
key=value on the command line; what comes later counts.

An unknown key is refused with the nearest known one, and so are values that do not go together.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_pipeline.storage import is_remote
from data_pipeline.storage.output import check_apart, is_within
from model.documents import MIB, describe_problem, key_of, read_file, show
from model.errors import ConfigError
from model.yaml_documents import parse_yaml
from trainer.config import renamed
from trainer.config.changes import check_names
from trainer.config.schema import RunConfig
from trainer.config.uses import refuse_unused
from trainer.engine.precision import MODES
from trainer.recipes import recipe_names

LARGEST_FILE = MIB  # bytes of a run file
_DEEPEST_KEY = 8  # names in an override's key
_LONGEST_KEY = 100  # characters that are compared with the known keys
_MOST_TOLD = 5  # mistakes in one message


def load_config(path: Path | str | None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Return the configuration that a user wrote: a run file, if any, and overrides as key=value.

    Raises ConfigError that names the file or the override and the key: for an unknown key (with the
    nearest known one), an old name of a key (with the new one), a value out of bounds, values that
    do not go together, and a key that the objective does not use. Raises StorageError for a broken
    url.
    """
    values = _read_run_file(path) if path is not None else {}
    for override in overrides:
        _apply(override, values)
    source = str(path or "the command line")
    config = checked_config(values, source)
    refuse_unused(config, config.objective, source)
    return config


def checked_config(values: dict[str, Any], source: str) -> RunConfig:
    """Return the configuration that the values make, with what a start needs checked.

    source: where the values come from, for messages. Raises as `load_config` does, but takes keys
    that the objective does not use.
    """
    config = _validated(values, source)
    _check_together(config)
    return config.model_copy(update={"run": config.run.absolute()})


def resolved_config(content: bytes, source: str) -> RunConfig:
    """Return the configuration that a run wrote down, perhaps an earlier version of this program,
    perhaps on another machine: old keys are read as the new ones, and what only a start needs is
    not checked. Raises ConfigError, StorageError."""
    return _validated(renamed.with_new_keys(_mapping(content, source)), source)


def _read_run_file(path: Path | str) -> dict[str, Any]:
    try:
        content = read_file(path, LARGEST_FILE, ConfigError)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration file {path}, and no recipe of that name; there are "
            f"{', '.join(recipe_names())}"
        ) from error
    return _mapping(content, str(path))


def _mapping(content: bytes, source: str) -> dict[str, Any]:
    values = parse_yaml(content, source, ConfigError) or {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds a {type(values).__name__}, not a mapping of keys to values"
        )
    return values


def _apply(override: str, values: dict[str, Any]) -> None:
    """Set the key of key=value, in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{show(override)} is no override; write key=value, as in batch.micro=32")
    *sections, last = _names(key, override)
    value = parse_yaml(text, show(override), ConfigError)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{show(override)}: {show(section)} is a value, not a section")
    values[last] = value


def _names(key: str, override: str) -> list[str]:
    names = key.split(".")
    if len(names) > _DEEPEST_KEY or any(not name or name != name.strip() for name in names):
        raise ConfigError(
            f"{show(override)} names no key before the =; write key=value, as in batch.micro=32"
        )
    return names


def _validated(values: dict[str, Any], source: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        told = [_described(problem) for problem in problems[:_MOST_TOLD]]
        if more := len(problems) - len(told):
            told.append(f"and {more} more")
        raise ConfigError(f"in {source}: {'; '.join(told)}") from error


def _described(problem: ErrorDetails) -> str:
    if problem["type"] != "extra_forbidden":
        return describe_problem(problem)
    key = key_of(problem)
    if key in renamed.KEYS:
        return f"{key} is called {renamed.KEYS[key]} now"
    *sections, last = map(str, problem["loc"])
    known = list(_section_at(sections).model_fields)
    near = difflib.get_close_matches(last[:_LONGEST_KEY], known, n=1, cutoff=0)
    return f"unknown key {key}; the nearest known one is {'.'.join([*sections, *near])}"


def _section_at(names: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for name in names:
        annotation = section.model_fields[name].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return section


def _check_together(config: RunConfig) -> None:
    """Check whether the values go together, as a start needs it.

    Raises ConfigError, and StorageError for a broken url.
    """
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
    if any(not schedule.warmup < at < schedule.total for at in schedule.milestones):
        raise ConfigError(
            f"schedule.milestones = {', '.join(f'{at:g}' for at in schedule.milestones)} must lie "
            f"between schedule.warmup = {schedule.warmup:g} and schedule.total = "
            f"{schedule.total:g} {schedule.unit}"
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
    """Raise ConfigError where a file is in the way of a folder, and where a run would write into
    what it reads or copies."""
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
