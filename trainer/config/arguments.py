"""How a command line names a configuration: a run file, or the name of a recipe, and key=value, in
any order among the options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from model.documents import show
from model.errors import ConfigError
from trainer.recipes import recipe, recipe_names


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the run file, if one is named, and the overrides; a command line may mix them.

    A word without = is a file, or the name of a recipe where there is no such file. Raises
    ConfigError where it is neither, and where there are two.
    """
    files = [a for a in arguments if "=" not in a or _is_file(a)]
    paths = [_run_file(file) for file in files]
    _check_one(files)
    return (paths[0] if paths else None), [a for a in arguments if a not in files]


def _run_file(word: str) -> Path:
    path = Path(word) if _is_file(word) else recipe(word)
    if path is None:
        raise ConfigError(
            f"{show(word)} is neither a run file (there is no such file) nor an override; "
            "write key=value, as in batch.micro=32, or the name of a recipe: "
            f"{', '.join(recipe_names())}"
        )
    return path


def _check_one(files: Sequence[str]) -> None:
    if len(files) > 1:
        raise ConfigError(
            f"{' and '.join(map(show, files))}: one run file only; add differences as key=value"
        )


def _is_file(argument: str) -> bool:
    # os.access comes first: a name that is too long for a file is no error for it.
    return os.access(argument, os.F_OK) and Path(argument).is_file()


def configured(
    config: Path | None, arguments: Sequence[str] | None
) -> tuple[Path | None, list[str]]:
    """Return the run file, which may also be that of --config, and the overrides.

    A file of --config that does not exist is no error yet: ranks that end before they meet would
    leave the others waiting. Raises ConfigError otherwise, as `split_arguments` does.
    """
    file, overrides = split_arguments(arguments or [])
    _check_one([str(path) for path in (config, file) if path is not None])
    if config is not None and not _is_file(str(config)):
        config = recipe(str(config)) or config
    return config or file, overrides


def parse_rank(description: str, arguments: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """Return the run file and the overrides from the words of a module that launchers start.

    description: of the module, for its help. Raises ConfigError as `configured` does.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, help="run file (YAML), if it is not given as an argument"
    )
    # The deepspeed launcher appends it.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="FILE|key=value",
        help="as in batch.micro=32; see `addp config`",
    )
    options = parser.parse_intermixed_args(arguments)
    return configured(options.config, options.arguments)
