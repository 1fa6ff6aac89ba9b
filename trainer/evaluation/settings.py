"""What a result depends on, and whether an earlier result depends on the same.

Options count by their value, except those that name data: these count by what the data are,
wherever the data lie and however their path is written.
"""

from __future__ import annotations

from typing import Any

from model.sampling_options import SamplingOptions
from trainer.config.schema import RunConfig
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.contents import KEYS, Contents
from trainer.evaluation.options import EvaluationOptions
from trainer.evaluation.results import Result

# What results of earlier versions depend on without saying so. They knew no sampler but the
# published one.
_UNSAID = {"reference": "held-out", **SamplingOptions().model_dump(mode="json")}
# What earlier versions, which took nothing from the run, did where an option was not given.
_EARLIER_DEFAULTS = {"held_out": 0.1, "seed": 0, "batch": 64}


class ResultSettings:
    """The settings of the results that an evaluation makes.

    given: the options, as they were given. `options` also has what the run's configuration says.
    """

    def __init__(self, given: EvaluationOptions, config: RunConfig) -> None:
        self.options, _ = given.resolved(config)
        self.contents = Contents(self.options.split)
        self._conditional = config.condition == "classes"
        self._given = {
            name: _EARLIER_DEFAULTS.get(name) if value is None else value
            for name, value in given.model_dump(mode="json").items()
        }
        self._values = self.options.model_dump(mode="json")

    def look_again(self) -> None:
        """Forget what the data are: they may have changed."""
        self.contents = Contents(self.options.split)

    def of(self, benchmark: str) -> dict[str, Any]:
        """What a result depends on, by option. Raises ADDPError where the data cannot be
        reached."""
        values = {name: self._values[name] for name in self._names(benchmark)}
        return {
            name: self.contents.key(name, value) if name in KEYS else value
            for name, value in values.items()
        }

    def locations(self, benchmark: str) -> dict[str, str | None]:
        """Where the data lie that a result depends on, by option."""
        return {name: self._values[name] for name in self._names(benchmark) if name in KEYS}

    def differences(self, result: Result) -> list[str]:
        """Say in words what a result depends on that this evaluation would do otherwise.

        Raises ADDPError where the data cannot be reached.
        """
        there = _UNSAID | result.settings
        if result.locations is None:  # of a version that knew data by the spelling of their path
            return [
                f"{name}: {there.get(name)!r} there, now {self._given[name]!r}"
                for name in self._names(result.benchmark)
                if there.get(name) != self._given[name]
            ]
        locations = self.locations(result.benchmark)
        return [
            f"{name}: other data there, {result.locations.get(name)}, than now, {locations[name]}"
            if name in KEYS
            else f"{name}: {there.get(name)!r} there, now {value!r}"
            for name, value in self.of(result.benchmark).items()
            if there.get(name) != value
        ]

    def _names(self, benchmark: str) -> tuple[str, ...]:
        names = BENCHMARKS[benchmark].depends_on(self.options)
        # The classes of samples are drawn as often as the images have them.
        drawn = self._conditional and "class_guidance" in names and "images" not in names
        return (*names, "images") if drawn else names
