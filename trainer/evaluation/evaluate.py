"""Measure checkpoints, while the run goes on or after it.

python -m trainer.evaluation.evaluate RUN --suite knn,linear --images IMAGES
deepspeed --module trainer.evaluation.evaluate s3://bucket/run --follow --suite samples,fid ...
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.config.options import AsJson, LocalRank, LocalTokenizer, TrainedWeights, from_models
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.measures.intervals import ENDS
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints, WorkOptions

if TYPE_CHECKING:
    from trainer.evaluation.results import Result

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
    from trainer.distributed.collectives import Collectives, own_device
    from trainer.distributed.meeting import join_ranks
    from trainer.evaluation.assignments import Request
    from trainer.evaluation.evaluator import Evaluator
    from trainer.evaluation.requested import check, results, say_taken

    del local_rank
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _stop)
    request = Request(
        benchmarks=[name.strip() for name in suite.split(",") if name.strip()],
        options=options,
        which=which,
        weights=weights,
        work=_work_folder(run, working.work, [options.images, options.ade20k, options.coco]),
        lease=working.lease,
        keep_samples=working.keep_samples,
        tokenizer=tokenizer,
    )
    join_ranks()
    collectives = Collectives()
    config = collectives.broadcast_from_rank0(lambda: check(run, request))
    if collectives.rank == 0:
        say_taken(request, config)
    Evaluator(run, config, request, collectives, own_device()).evaluate()
    if collectives.rank == 0:
        _show(results(run, request), as_json)


def _stop(number: int, _: object) -> None:
    from trainer.resilience.stopping import Preempted

    raise Preempted(
        f"{signal.Signals(number).name}: what is finished stands; start it again to go on"
    )


def _work_folder(run: str, work: Path | None, data: list[str | None]) -> Path:
    """The folder for samples and caches. Raises ConfigError where --work cannot be it."""
    from data_pipeline.storage import file_name, is_remote
    from data_pipeline.storage.output import check_apart, check_output
    from trainer.evaluation.results import FOLDER

    if work is None:
        return Path("evaluation") / file_name(run) if is_remote(run) else Path(run) / FOLDER
    check_output(work)
    for location in filter(None, data):
        check_apart(work, location, "--work")
    return work


def _show(results: list[Result], as_json: bool) -> None:
    if as_json:
        documents: list[dict[str, Any]] = [result.document() for result in results]
        print(json.dumps(documents, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("step", "benchmark", "metric", "value", "95 % interval"):
        table.add_column(name, justify="left" if name in ("benchmark", "metric") else "right")
    for result in results:
        values = dict(result.numbers)
        for name, value in values.items():
            if any(name.endswith(end) and name.removesuffix(end) in values for end in ENDS):
                continue  # it stands beside its metric
            ends = [f"{values[name + end]:.3g}" for end in ENDS if name + end in values]
            row = (result.benchmark, name, f"{value:.4g}", " to ".join(ends))
            table.add_row(str(result.step), *row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
