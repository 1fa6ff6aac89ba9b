"""Evaluations of the demo's runs, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainer.distributed.collectives import Collectives, own_device
from trainer.distributed.meeting import join_ranks, leave_ranks
from trainer.evaluation.assignments import Request
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints
from trainer.evaluation.trained import run_config
from trainer.run_folder import RunFolder

_LEASE = 60.0  # seconds after which the work of an evaluation that was killed is free


def measure(run: Path, parts: Iterable[tuple[int, tuple[str, ...], EvaluationOptions]]) -> None:
    """Measure checkpoints of a run as `addp evaluate` does.

    parts: the step of a checkpoint, the benchmarks that it lacks, and their options. Raises
    ADDPError.
    """
    config = run_config(str(run))
    join_ranks()  # a world of this process alone
    try:
        for step, benchmarks, options in parts:
            request = Request(
                benchmarks=list(benchmarks),
                options=options,
                which=WhichCheckpoints(checkpoint=step),
                weights="raw",
                work=RunFolder(run).evaluation,
                lease=_LEASE,
            )
            Evaluator(str(run), config, request, Collectives(), own_device()).evaluate()
    finally:
        leave_ranks()
