"""Names that have changed: keys of the configuration, options of the command line, and keys of
evaluation results.

A person who still uses an old key or option is refused with the new name. What an earlier version
left on disk (a run's resolved configuration, the copy of it in a checkpoint's manifest, results of
evaluations) is read as if it had the new names. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.errors import ADDPError

KEYS = {
    "data.pictures": "data.images",
    "data.patience": "data.retry_seconds",
    "checkpoint.patience": "checkpoint.retry_seconds",
    "health.skip": "health.extra_skip_steps",
    "health.skips": "health.max_nonfinite_steps",
    "health.rewinds": "health.max_rewinds",
}
OPTIONS = {"--pictures": "--images", "--train-pictures": "--train-images"}
# Options that belong to another command now, by the command that had them.
MOVED_OPTIONS = {
    "train": {
        "--hostfile": "`addp launch FILE --hostfile HOSTS`",
        "--master-addr": "`addp launch FILE --hostfile HOSTS --master-addr ADDRESS`",
        "--check": "`addp doctor FILE --hostfile HOSTS`",
    }
}
# In a result of an evaluation: its settings, the locations of its data, and its metrics.
RESULT_KEYS = {
    "pictures": "images",
    "train_pictures": "train_images",
    "reference_pictures": "reference_images",
}


class RenamedOption(ADDPError):
    """An option of the command line that has another name now, or belongs to another command."""

    exit_code = 2  # wrong usage, as for an option that does not exist


def refuse_old_options(arguments: Sequence[str]) -> None:
    """Raise RenamedOption for the first old option among the words of a command line."""
    command = arguments[0] if arguments else ""
    moved = MOVED_OPTIONS.get(command, {})
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in moved:
            raise RenamedOption(f"`addp {command}` has no {option} any more; use {moved[option]}")
        if option in OPTIONS:
            raise RenamedOption(f"{option} is called {OPTIONS[option]} now")


def with_new_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration from disk, as JSON, under the keys of today.

    Where it has an old key beside the new one, the new one counts. The argument stays as it is.
    """
    config = {key: dict(v) if isinstance(v, dict) else v for key, v in config.items()}
    for old, new in KEYS.items():
        (section, old_name), (_, new_name) = old.split("."), new.split(".")
        values = config.get(section)
        if isinstance(values, dict) and old_name in values:
            value = values.pop(old_name)
            values.setdefault(new_name, value)
    return config
