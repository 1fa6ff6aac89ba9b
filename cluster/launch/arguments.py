"""What a backend has to know of the words that a supervisor is started with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.launch.backend import LaunchRequest
from model.errors import ConfigError


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the word after an option; None where there is no such option."""
    return words[words.index(option) + 1] if option in words[:-1] else None


def run_folder(request: LaunchRequest) -> Path:
    """Return the run folder that the arguments of a request name. Raises ConfigError without."""
    run = value_of("--run", request.arguments)
    if run is None:
        raise ConfigError(f"{request.module} gets no run folder; this backend needs --run")
    return Path(run).absolute()
