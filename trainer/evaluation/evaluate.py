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
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from data_pipeline.storage import StorageError, file_name, is_remote, open_store
from data_pipeline.storage.output import check_apart, check_output
from model.errors import ConfigError
from trainer.config.options import (
    MOST_IMAGES,
    AsJson,
    ChoiceTemperature,
    DenoisingSteps,
    LocalRank,
    LocalTokenizer,
    MaskSchedule,
    Precision,
    Temperature,
    TopP,
    TrainedWeights,
    batch_option,
    held_out_option,
    seed_option,
    step_option,
)
from trainer.config.schema import MOST_STEPS, YEAR, RunConfig
from trainer.distributed.collectives import Collectives, own_device
from trainer.distributed.meeting import join_ranks
from trainer.evaluation.benchmarks.registry import PARTS, settings_of
from trainer.evaluation.course import StoredCourse
from trainer.evaluation.evaluator import Choice, Evaluator
from trainer.evaluation.results import FOLDER, flattened, read_results
from trainer.evaluation.task import Options
from trainer.evaluation.trained import is_lasting, run_config
from trainer.objectives.registry import OBJECTIVES
from trainer.resilience.stopping import Preempted


def main(
    run: Annotated[
        str, typer.Argument(help="run folder, or s3://bucket/prefix that a run uploads to")
    ],
    suite: Annotated[str, typer.Option(help=f"parts, with commas: {', '.join(PARTS)}")] = "knn",
    follow: Annotated[
        bool, typer.Option("--follow", help="each new checkpoint, until the run is done")
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_STEPS, help="all checkpoints at multiples of this step"),
    ] = None,
    checkpoint: Annotated[
        int | None, step_option("the checkpoint of this step; else the newest valid one")
    ] = None,
    weights: TrainedWeights = "raw",
    images: Annotated[
        str | None,
        typer.Option(help="class folders or WebDataset shards; else what the run itself reads"),
    ] = None,
    train_images: Annotated[
        str | None,
        typer.Option(
            help="training images, where they stand apart; all of --images is then held out"
        ),
    ] = None,
    held_out: Annotated[
        float | None, held_out_option("share of held-out images, by hash; else the run's")
    ] = None,
    reference: Annotated[
        Literal["published", "held-out"],
        typer.Option(
            help="fid, proxy: all of --images, the shorter side resized bilinearly; or the "
            "held-out ones, bicubic"
        ),
    ] = "published",
    tokens: Annotated[str | None, typer.Option(help="held-out: held-out token data set")] = None,
    train_tokens: Annotated[
        str | None,
        typer.Option(help="held-out: training token data set; else what the run itself reads"),
    ] = None,
    count: Annotated[
        int, typer.Option(min=2, max=MOST_IMAGES, help="samples, fid, proxy: images to generate")
    ] = 50_000,
    seed: Annotated[
        int | None, seed_option("image i depends on (seed, i) only; else the run's")
    ] = None,
    steps: DenoisingSteps = 20,
    schedule: MaskSchedule = "cosine",
    choice_temperature: ChoiceTemperature = 6.0,
    temperature: Temperature = "dynamic",
    top_p: TopP = 1.0,
    batch: Annotated[
        int | None, batch_option("images that are computed together; else the run's micro batch")
    ] = None,
    precision: Precision = "fp32",
    inception_weights: Annotated[
        Path | None, typer.Option(help="fid: Inception-v3, pt_inception-2015-12-05-6726825d.pth")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="knn, linear: also an untrained encoder, and pixels")
    ] = False,
    tokenizer: LocalTokenizer = None,
    work: Annotated[
        Path | None, typer.Option(help="folder for samples and caches; else RUN/evaluation")
    ] = None,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="leave generated sets in the work folder")
    ] = False,
    lease: Annotated[
        float,
        typer.Option(min=0.1, max=YEAR, help="seconds after which a dead evaluator's work is free"),
    ] = 60,
    as_json: AsJson = False,
    local_rank: LocalRank = None,
) -> None:
    """Measure checkpoints of a run, finished or not; several evaluators may share the work.

    held-out: PSNR, or masked-token cross-entropy. samples: a set, its grid and steps. fid: FID, IS,
    KID, precision and recall. proxy: the same on packaged EfficientNet features. knn, linear:
    frozen features. accuracy: of a classifier. Each result is RUN/evaluation/step-N/PART.json,
    whole and once; what is there is not done again. What is not given and the run's configuration
    says, is taken from there, and printed.
    """
    del local_rank
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _stop)
    parts = [part.strip() for part in suite.split(",") if part.strip()]
    options = Options.model_validate(
        {
            name: value
            for name, value in locals().items()
            if name in Options.model_fields and value is not None
        }
    )
    if work is not None:
        check_output(work)
        if images is not None:
            check_apart(work, images, "--work")
    else:
        work = Path("evaluation") / file_name(run) if is_remote(run) else Path(run) / FOLDER
    join_ranks()
    collectives = Collectives()
    config = collectives.broadcast_from_rank0(lambda: _check(run, parts, options, follow))
    if collectives.rank == 0:
        _say_taken(*options.with_run(config), parts, config, tokenizer)
    if follow and every is None:
        every = 1
    choose = Choice(checkpoint, every)
    Evaluator(
        run,
        collectives,
        own_device(),
        parts,
        options,
        weights,
        choose,
        follow,
        lease,
        work,
        keep_samples,
        tokenizer,
        config,
    ).go()
    if collectives.rank == 0:
        store = open_store(run)
        course = StoredCourse(store)
        wanted = (r for r in read_results(store) if r["part"] in parts and r["weights"] == weights)
        _show([r for r in wanted if course.is_current(r)], as_json)


def _stop(number: int, _: object) -> None:
    raise Preempted(
        f"{signal.Signals(number).name}: what is finished stands; start it again to go on"
    )


def _check(run: str, parts: list[str], options: Options, follow: bool) -> RunConfig:
    """Before anything is computed; the run's configuration. Raises ConfigError."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(
            f"--suite {','.join(unknown)}: no such part; there are {', '.join(PARTS)}"
        )
    if "fid" in parts and (
        options.inception_weights is None or not options.inception_weights.is_file()
    ):
        raise ConfigError(
            f"fid needs --inception-weights FILE ({options.inception_weights or 'none given'}): "
            "the standard Inception-v3 as torch-fidelity distributes it, "
            "pt_inception-2015-12-05-6726825d.pth. Without it, the part `proxy` gives the same "
            "formulas on packaged EfficientNet features: good to compare checkpoints, not to "
            "compare with published figures"
        )
    config = _started(run) if follow else run_config(run)
    objective = config.objective
    kind = OBJECTIVES[objective].network_kind
    wrong = [part for part in parts if kind not in PARTS[part].network_kinds]
    if wrong:
        fitting = ", ".join(name for name, part in PARTS.items() if kind in part.network_kinds)
        raise ConfigError(
            f"{run} trained a {objective}, for which there is no {', '.join(wrong)}; there are "
            f"{fitting}"
        )
    return config


def _say_taken(
    options: Options,
    taken: dict[str, Any],
    parts: list[str],
    config: RunConfig,
    tokenizer: Path | None,
) -> None:
    used = {"batch", *(name for part in parts for name in settings_of(part, options))}
    shown = {name: value for name, value in taken.items() if name in used}
    if (
        OBJECTIVES[config.objective].network_kind == "addp"
        and tokenizer is None
        and {"samples", "fid", "proxy", "held-out"} & set(parts)
    ):
        shown["tokenizer"] = config.tokenizer.weights
    if shown:
        named = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in shown.items())
        print(f"from the run's configuration: {named}", file=sys.stderr, flush=True)


def _started(run: str) -> RunConfig:
    """The configuration, once the run has begun; its store is waited for as well, unless it refuses
    us."""
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


def _show(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("step", "part", "figure", "value"):
        table.add_column(name, justify="right" if name in ("step", "value") else "left")
    for result in results:
        for name, value in flattened(result["figures"]):
            table.add_row(str(result["step"]), result["part"], name, f"{value:.4g}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
