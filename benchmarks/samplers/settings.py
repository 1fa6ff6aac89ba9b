"""What the study compares: families of settings, each with as many steps as a number of passes
allows."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError

from model.documents import first_problem
from model.errors import ConfigError
from model.sampling_options import SamplingOptions

BASELINE = "published"
# The options of each family, as they are typed. `guide` stands for an earlier checkpoint.
FAMILIES = {
    BASELINE: "",
    "published, top-p 0.6": "top_p=0.6",
    "published, less noise": "choice_temperature=2",
    "halton": "order=halton",
    "random": "order=random",
    "halton, top-p 0.6": "order=halton top_p=0.6",
    "halton, cooler": "order=halton token_temperature_end=0.7",
    "guided, 0.5": "guidance_weight=0.5",
    "guided, 1": "guidance_weight=1",
    "guided, 2": "guidance_weight=2",
    "guided, 4": "guidance_weight=4",
    "guided, 2, top-p 0.6": "guidance_weight=2 top_p=0.6",
    "guided by a checkpoint, 2": "guidance_weight=2 guide=earlier",
    "halton, guided, 2": "order=halton guidance_weight=2",
    "halton, mended": "order=halton remask_steps=0.25",
    "halton, mended by the critic": "order=halton remask_steps=0.25 critic=predictor",
}


class Setting(NamedTuple):
    """A family at a budget. passes: what a sample costs, at most the budget."""

    family: str
    budget: int
    sampling: SamplingOptions

    @property
    def passes(self) -> int:
        return self.sampling.passes


def setting(family: str, options: str, budget: int) -> Setting | None:
    """Return the setting of a family that takes the most steps within a budget of passes.

    options: as `order=halton top_p=0.8`. remask_steps may be a share of the steps, below 1. None
    where no number of steps fits. Raises ConfigError.
    """
    values: dict[str, Any] = dict(word.partition("=")[::2] for word in options.split())
    share = float(values.pop("remask_steps", 0))
    for steps in range(budget, 0, -1):
        mending = round(share * steps) if share < 1 else int(share)
        try:
            sampling = SamplingOptions(**values, steps=steps, remask_steps=mending)
        except ValidationError as problem:
            if share:  # too few steps to mend in
                return None
            raise ConfigError(f"{options}: {first_problem(problem)}") from problem
        if sampling.passes <= budget:
            return Setting(family, budget, sampling)
    return None
