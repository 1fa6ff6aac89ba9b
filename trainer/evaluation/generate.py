"""Generate images with an ADDP network: a grid to look at, or a set of any size to measure.

python -m trainer.evaluation.generate RUN --count 64     a grid, and its denoising steps
deepspeed --module trainer.evaluation.generate RUN --count 50000 --into FOLDER

The second makes a set on all ranks. A set that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.progress import Progress
from data_pipeline.storage import is_remote
from data_pipeline.storage.output import check_output
from model.errors import ConfigError
from model.sampler import generate
from model.sampling_options import SamplingOptions
from trainer.config.options import (
    LocalRank,
    LocalTokenizer,
    TrainedWeights,
    Zoom,
    from_models,
    step_option,
)
from trainer.distributed.collectives import own_device
from trainer.distributed.world import World, take_world
from trainer.evaluation.completion import completed_images
from trainer.evaluation.options import Completion, Output, SetOptions
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_set import SampleSet, denoising_grid, step_of_set
from trainer.evaluation.trained import Trained, in_precision, load_addp
from trainer.run_folder import RunFolder, write_json

_MOST_IN_GRID = 4096  # images, which are in memory together
_IN_TRAIL = 8  # images whose denoising steps are shown


@from_models
def main(
    run: Annotated[
        str,
        typer.Argument(help="folder of an ADDP run, finished or not, or s3:// that it uploads to"),
    ],
    *,
    samples: SetOptions,
    sampling: SamplingOptions,
    weights: TrainedWeights = "raw",
    checkpoint: Annotated[
        int | None,
        step_option(
            "step of the checkpoint to take; if not given, the finished network or the newest one"
        ),
    ] = None,
    tokenizer: LocalTokenizer = None,
    completion: Completion,
    output: Output,
    zoom: Zoom = 1,
    local_rank: LocalRank = None,
) -> None:
    """Generate a grid of samples with the steps by which the first few came about, or a set of
    samples.

    A set holds the same files for any number of processes; if it was cut off, the same command
    finishes it.
    """
    del local_rank
    world = take_world()
    _check(run, samples.count, output, world)
    load = partial(load_addp, run, weights, tokenizer=tokenizer)
    if output.into is not None:
        open_set = partial(SampleSet, output.into, options=samples, sampling=sampling)
        _make_set(_same_step_for_all(load, open_set, checkpoint, output.into), world)
        print(output.into)
        return
    trained = in_precision(_on_device(load(checkpoint)), samples.precision)
    name = "completed" if completion.complete else "grid"
    name += ("" if trained.step is None else f"-step-{trained.step}") + suffix(weights)
    target = output.out or RunFolder(run).samples / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if completion.complete is not None:
        completed_images(
            trained,
            completion.complete,
            completion.keep,
            seed=samples.seed,
            sampling=sampling,
            zoom=zoom,
        ).save(target)
    else:
        _make_grid(trained, samples, sampling, zoom, target)
    settings = {
        "count": samples.count,
        "seed": samples.seed,
        "weights": weights,
        "step": trained.step,
        "precision": samples.precision,
    }
    write_json(target.with_suffix(".json"), {**settings, **sampling.model_dump()})
    print(target)


def _check(run: str, count: int, output: Output, world: World) -> None:
    """Refuse what cannot be made, before anything is loaded. Raises typer.BadParameter or
    ConfigError."""
    if output.into is not None:
        check_output(output.into)
        return
    if count > _MOST_IN_GRID:
        raise typer.BadParameter(
            f"a grid has at most {_MOST_IN_GRID}; give --into FOLDER for a set",
            param_hint="--count",
        )
    if world.size > 1:
        raise ConfigError(
            f"a grid is the work of one process, and {world.size} run; --into FOLDER makes a set "
            "by all of them"
        )
    if output.out is not None:
        check_output(output.out, (".png",))
    elif is_remote(run):
        raise typer.BadParameter(
            "give --out FILE or --into FOLDER for a run on a store", param_hint="--out"
        )


def _on_device(trained: Trained) -> Trained:
    device = own_device()
    trained.network.to(device)
    trained.tokenizer.to(device)
    return trained


def _same_step_for_all(
    load: Callable[[int | None], Trained],
    open_set: Callable[[Trained], SampleSet],
    step: int | None,
    into: Path,
) -> SampleSet:
    """Open the set of a checkpoint, the same on all processes.

    Where no step was named, the first of all processes chooses it. A run that goes on has another
    newest checkpoint for the processes that come later, or that see its folder later: they take the
    step that the set in `into` has.
    """
    trained = load(step if step is not None else step_of_set(into))
    try:
        return open_set(_on_device(trained))
    except ConfigError:
        chosen = step_of_set(into)
        if step is not None or chosen == trained.step:
            raise
    return open_set(_on_device(load(chosen)))


def _make_set(samples: SampleSet, world: World) -> None:
    """Make this process's share of a set. No process waits for another: nothing is agreed upon."""
    mine = range(world.rank, samples.chunks, world.size)
    missing = [chunk for chunk in mine if not samples.is_made(chunk)]
    total, left = (sum(map(samples.size, chunks)) for chunks in (mine, missing))
    title = f"generating, process 0 of {world.size}" if world.size > 1 else "generating"
    shown = world.rank == 0
    with Progress(title, total, "images", done=total - left, shown=shown) as progress:
        for chunk in missing:
            samples.make_chunk(chunk)
            progress.advance(samples.size(chunk))


def _make_grid(
    trained: Trained, samples: SetOptions, sampling: SamplingOptions, zoom: int, target: Path
) -> None:
    """Write a grid of all samples to `target`, and beside it a grid of the first ones' steps."""
    finished: list[Tensor] = []
    trail: list[Tensor] = []
    title, steps = f"generating {samples.count} images", samples.count * sampling.steps
    with Progress(title, steps, "denoising steps") as progress:
        for start in range(0, samples.count, samples.batch):
            size = min(samples.batch, samples.count - start)
            states = generate(
                trained.network,
                trained.tokenizer,
                seed=samples.seed,
                start=start,
                count=size,
                sampling=sampling,
            )
            for state in states:
                if start == 0:
                    trail.append(state.image[:_IN_TRAIL].float().cpu())
                progress.advance(size)
            finished.append(state.image.float().cpu())
    columns = max(1, round(samples.count**0.5))
    image_grid(torch.cat(finished), columns=columns, zoom=zoom).save(target)
    denoising_grid(trail, zoom).save(target.with_name(target.stem + "-steps.png"))


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
