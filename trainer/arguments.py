"""How a command line names a configuration: a run file and key=value, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.errors import ConfigError


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The run file, if one is named, and the overrides, which a command line may mix. Raises ConfigError."""
    files = [a for a in arguments if "=" not in a or Path(a).is_file()]
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(
                f"{file!r} is neither a run file (there is no such file) nor an override; write key=value, as in "
                "batch.micro=32"
            )
    if len(files) > 1:
        raise ConfigError(f"{' and '.join(files)}: one run file only; add differences as key=value")
    return (Path(files[0]) if files else None), [a for a in arguments if a not in files]
