"""Measure checkpoints, while the run goes on or after it.

python -m trainer.evaluation.evaluate RUN --suite knn,linear --images IMAGES
deepspeed --module trainer.evaluation.evaluate s3://bucket/run --follow --suite samples,fid ...
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_pipeline.storage import StorageError, file_name, is_remote, open_store
from data_pipeline.storage.output import check_apart, check_output
from model.errors import ConfigError
from trainer.config.options import AsJson, LocalRank, LocalTokenizer, TrainedWeights, from_models
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives, own_device
from trainer.distributed.meeting import join_ranks
from trainer.evaluation.assignments import Request
from trainer.evaluation.benchmarks.registry import BENCHMARKS, fitting
from trainer.evaluation.course import StoredCourse
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints, WorkOptions
from trainer.evaluation.results import FOLDER, Result, read_results
from trainer.evaluation.trained import is_lasting, run_config
from trainer.objectives.registry import OBJECTIVES
from trainer.resilience.stopping import Preempted

_SUITE = "; ".join(f"{name}: {benchmark.summary}" for name, benchmark in BENCHMARKS.items())


@from_models
def main(
    run: Annotated[
        str, typer.Argument(help="run folder, or s3://bucket/prefix that a run uploads to")
    ],
    *,
    suite: Annotated[str, typer.Option(help=f"benchmarks, separated by commas. {_SUITE}")] = "knn",
    which: WhichCheckpoints,
    weights: TrainedWeights = "raw",
    options: EvaluationOptions,
    tokenizer: LocalTokenizer = None,
    working: WorkOptions,
    as_json: AsJson = False,
    local_rank: LocalRank = None,
) -> None:
    """Measure checkpoints of a run, finished or not; several evaluators may share the work.

    Each result is a file, RUN/evaluation/step-N/BENCHMARK.json. It is written whole and once, and
    what is there is not measured again. Options that are not given are taken from the run's
    configuration, as far as it has them, and printed.
    """
    del local_rank
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _stop)
    request = Request(
        benchmarks=[name.strip() for name in suite.split(",") if name.strip()],
        options=options,
        which=which,
        weights=weights,
        work=_work_folder(run, working.work, options.images),
        lease=working.lease,
        keep_samples=working.keep_samples,
        tokenizer=tokenizer,
    )
    join_ranks()
    collectives = Collectives()
    config = collectives.broadcast_from_rank0(lambda: _check(run, request))
    if collectives.rank == 0:
        _say_taken(request, config)
    Evaluator(run, config, request, collectives, own_device()).evaluate()
    if collectives.rank == 0:
        _show(_results(run, request), as_json)


def _stop(number: int, _: object) -> None:
    raise Preempted(
        f"{signal.Signals(number).name}: what is finished stands; start it again to go on"
    )


def _work_folder(run: str, work: Path | None, images: str | None) -> Path:
    """The folder for samples and caches. Raises ConfigError where --work cannot be it."""
    if work is None:
        return Path("evaluation") / file_name(run) if is_remote(run) else Path(run) / FOLDER
    check_output(work)
    if images is not None:
        check_apart(work, images, "--work")
    return work


def _check(run: str, request: Request) -> RunConfig:
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
    return config


def _say_taken(request: Request, config: RunConfig) -> None:
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


def _results(run: str, request: Request) -> list[Result]:
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


def _show(results: list[Result], as_json: bool) -> None:
    if as_json:
        documents: list[dict[str, Any]] = [result.document() for result in results]
        print(json.dumps(documents, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "benchmark", "metric", "value"):
        table.add_column(name, justify="right" if name in ("step", "value") else "left")
    for result in results:
        for name, value in result.numbers:
            table.add_row(str(result.step), result.benchmark, name, f"{value:.4g}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
