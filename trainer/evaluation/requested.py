"""What was asked of an evaluation: whether the run can be measured so, what the run itself says of
it, and which results answer it."""

from __future__ import annotations

import sys
import time

from data_pipeline.storage import StorageError, open_store
from model.errors import ConfigError
from trainer.config.schema import RunConfig
from trainer.evaluation.assignments import Request
from trainer.evaluation.benchmarks.registry import BENCHMARKS, fitting
from trainer.evaluation.course import StoredCourse
from trainer.evaluation.results import Result, read_results
from trainer.evaluation.trained import is_lasting, run_config
from trainer.objectives.registry import OBJECTIVES


def check(run: str, request: Request) -> RunConfig:
    """Return the run's configuration, once it is clear that the run can be measured as requested.

    Raises ConfigError or StorageError.
    """
    names = request.benchmarks
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        raise ConfigError(
            f"--suite {','.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}"
        )
    for name in names:
        BENCHMARKS[name].check(request.options)
    config = _started(run) if request.which.follow else run_config(run)
    fit = fitting(OBJECTIVES[config.objective].network_kind)
    wrong = [name for name in names if name not in fit]
    if wrong:
        raise ConfigError(
            f"{run} has the objective {config.objective}, which {', '.join(wrong)} cannot measure; "
            f"the benchmarks for it are {', '.join(fit)}"
        )
    for name in names:
        BENCHMARKS[name].check_run(config)
    return config


def say_taken(request: Request, config: RunConfig) -> None:
    """Print what was not given and is taken from the run's configuration."""
    options, taken = request.options.resolved(config)
    benchmarks = [BENCHMARKS[name] for name in request.benchmarks]
    used = {"batch", *(name for b in benchmarks for name in b.depends_on(options))}
    shown = {name: value for name, value in taken.items() if name in used}
    if (
        OBJECTIVES[config.objective].network_kind == "addp"
        and request.tokenizer is None
        and any(b.uses_tokenizer for b in benchmarks)
    ):
        shown["tokenizer"] = config.tokenizer.weights
    if shown:
        named = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in shown.items())
        print(f"from the run's configuration: {named}", file=sys.stderr, flush=True)


def _started(run: str) -> RunConfig:
    """Wait until the run has begun, and return its configuration.

    A store that does not answer is waited for as well. Raises StorageError for one that refuses us.
    """
    said = ""
    while True:
        try:
            return run_config(run)
        except ConfigError:
            line = f"waits for {run} to begin"
        except StorageError as error:
            if is_lasting(run, error):
                raise
            line = f"{run}: {error}; tries again"
        if line != said:
            print(line, file=sys.stderr, flush=True)
        said = line
        time.sleep(2)


def results(run: str, request: Request) -> list[Result]:
    """The results that were asked for, of the run as it is now."""
    store = open_store(run)
    course = StoredCourse(store)
    return [
        result
        for result in read_results(store)
        if result.benchmark in request.benchmarks
        and result.weights == request.weights
        and course.is_current(result)
    ]
