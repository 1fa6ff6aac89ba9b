"""What the study compares: families of settings, each with as many steps as passes."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError

from model.documents import first_problem
from model.errors import ConfigError
from model.sampling_options import SamplingOptions

BASELINE = "published"
# The options of each family, as they are typed.
FAMILIES = {
    BASELINE: "",
    "top-p 0.6": "top_p=0.6",
    "less noise": "choice_temperature=2",
    "guided, 1": "guidance_weight=1",
    "guided, 2": "guidance_weight=2",
    "guided, 4": "guidance_weight=4",
    "guided, 2, top-p 0.6": "guidance_weight=2 top_p=0.6",
    "guided, 2, less noise": "guidance_weight=2 choice_temperature=2",
}


class Setting(NamedTuple):
    """A family with a number of steps, each of which is a pass of the network."""

    family: str
    sampling: SamplingOptions


def setting(family: str, options: str, steps: int) -> Setting:
    """Return a family's setting. options: as `guidance_weight=2 top_p=0.8`. Raises ConfigError."""
    values: dict[str, Any] = dict(word.partition("=")[::2] for word in options.split())
    try:
        return Setting(family, SamplingOptions(**values, steps=steps))
    except ValidationError as problem:
        raise ConfigError(f"{options}: {first_problem(problem)}") from problem
