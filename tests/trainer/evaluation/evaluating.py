"""Evaluators as processes, for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cluster.launch.backend import free_port
from tests.patience import PATIENCE
from tests.trainer.sabotage import Sabotage
from tests.trainer.worlds import CONTEXT
from trainer.evaluation.results import Result

QUICK = ("--count", "16", "--batch", "8", "--steps", "3", "--lease", "1.5")


def _evaluate(
    rank: int,
    world_size: int,
    port: int,
    run: str,
    options: Sequence[str],
    log: str,
    environment: dict[str, str],
    sabotage: Sabotage | None,
) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    if sabotage:
        sabotage.install(rank)
    import torch

    torch.set_num_threads(1)
    from trainer.command import run_ranks
    from trainer.evaluation.evaluate import main

    sys.argv = ["evaluate", run, *options]
    run_ranks(main)


def start(
    run: Path | str, log: Path, *options: str, world_size: int = 1, sabotage: Sabotage | None = None
) -> list[ForkServerProcess]:
    """The ranks of one evaluator."""
    port, environment = free_port(), dict(os.environ)
    arguments = (world_size, port, str(run), [*QUICK, *options], str(log), environment, sabotage)
    ranks = [CONTEXT.Process(target=_evaluate, args=(r, *arguments)) for r in range(world_size)]
    for rank in ranks:
        rank.start()
    return ranks


def codes(ranks: list[ForkServerProcess]) -> list[int | None]:
    """The exit codes of ranks; None for those that do not end, which are killed."""
    for rank in ranks:
        rank.join(PATIENCE)
    exit_codes = [rank.exitcode for rank in ranks]
    kill(ranks)
    return exit_codes


def kill(ranks: list[ForkServerProcess]) -> None:
    """Kill all ranks at once."""
    for rank in ranks:
        rank.kill()
        rank.join()


def without_maker(results: list[Result]) -> list[Result]:
    """What must be the same, whoever made it."""
    return [result.model_copy(update={"made": {}}) for result in results]
