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
from model.sampler import SamplerConfig, generate
from trainer.config.options import (
    MOST_IMAGES,
    ChoiceTemperature,
    DenoisingSteps,
    LocalRank,
    LocalTokenizer,
    MaskSchedule,
    Precision,
    Temperature,
    TopP,
    TrainedWeights,
    Zoom,
    batch_option,
    seed_option,
    step_option,
)
from trainer.distributed.collectives import own_device
from trainer.distributed.world import World, take_world
from trainer.evaluation.completion import KEEP, completed_images
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_set import Container, SampleSet, denoising_grid, step_of_set
from trainer.evaluation.trained import Trained, in_precision, load_addp
from trainer.run_folder import RunFolder, write_json

_MOST_IN_GRID = 4096  # images, which are in memory together


def main(
    run: Annotated[
        str,
        typer.Argument(help="folder of an ADDP run, finished or not, or s3:// that it uploads to"),
    ],
    count: Annotated[int, typer.Option(help="how many images", min=1, max=MOST_IMAGES)] = 64,
    seed: Annotated[int, seed_option("image i depends on (seed, i) only")] = 0,
    steps: DenoisingSteps = 20,
    schedule: MaskSchedule = "cosine",
    choice_temperature: ChoiceTemperature = 6.0,
    temperature: Temperature = "dynamic",
    top_p: TopP = 1.0,
    weights: TrainedWeights = "raw",
    checkpoint: Annotated[
        int | None,
        step_option(
            "step of the checkpoint to take; if not given, the finished network or the newest one"
        ),
    ] = None,
    batch: Annotated[int, batch_option("images that are computed together")] = 64,
    precision: Precision = "fp32",
    into: Annotated[
        Path | None, typer.Option(help="make a set of files in this folder, not a grid")
    ] = None,
    container: Annotated[
        Container, typer.Option(help="with --into: PNG files, or WebDataset tars")
    ] = "png",
    complete: Annotated[
        Path | None,
        typer.Option(
            help="keep a part of this image, or of the first ones in this folder, and generate the "
            "rest"
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            help=f"with --complete, the part to keep: {', '.join(KEEP)}, or a mask PNG, white "
            "where to generate"
        ),
    ] = "left",
    tokenizer: LocalTokenizer = None,
    zoom: Zoom = 1,
    out: Annotated[
        Path | None, typer.Option(help="PNG file of the grid; if not given, in RUN/samples/")
    ] = None,
    local_rank: LocalRank = None,
) -> None:
    """Generate a grid of samples with the steps by which the first few came about, or a set of
    samples.

    A set holds the same files for any number of processes; if it was cut off, the same command
    finishes it.
    """
    if into is None and count > _MOST_IN_GRID:
        raise typer.BadParameter(
            f"a grid has at most {_MOST_IN_GRID}; give --into FOLDER for a set",
            param_hint="--count",
        )
    world = take_world()
    if into is None and world.size > 1:
        raise ConfigError(
            f"a grid is the work of one process, and {world.size} run; --into FOLDER makes a set "
            "by all of them"
        )
    if into is None and out is None and is_remote(run):
        raise typer.BadParameter(
            "give --out FILE or --into FOLDER for a run on a store", param_hint="--out"
        )
    if into is not None:
        check_output(into)
    elif out is not None:
        check_output(out, (".png",))
    sampler = SamplerConfig(steps, schedule, choice_temperature, temperature, top_p)
    if into is not None:
        open_set = partial(
            SampleSet,
            into,
            count=count,
            seed=seed,
            sampler=sampler,
            container=container,
            batch=batch,
            precision=precision,
        )
        load = partial(load_addp, run, weights, tokenizer=tokenizer)
        _make_set(_same_step_for_all(load, open_set, checkpoint, into), world)
        print(into)
        return
    trained = in_precision(_on_device(load_addp(run, weights, checkpoint, tokenizer)), precision)
    name = "completed" if complete else "grid"
    name += ("" if trained.step is None else f"-step-{trained.step}") + suffix(weights)
    target = out or RunFolder(run).samples / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    if complete is not None:
        completed_images(trained, complete, keep, seed, sampler, zoom).save(target)
    else:
        _make_grid(trained, count, seed, sampler, batch, zoom, target)
    settings = {
        "count": count,
        "seed": seed,
        "weights": weights,
        "step": trained.step,
        "precision": precision,
    }
    write_json(target.with_suffix(".json"), {**settings, **sampler._asdict()})
    print(target)


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
    """Where no step was named, the first of all processes chose it: a run that goes on has another
    newest checkpoint for those that come later, or that see its folder later."""
    chosen = step if step is not None else step_of_set(into)
    trained = load(chosen)
    try:
        return open_set(_on_device(trained))
    except ConfigError:
        if step is not None or (there := step_of_set(into)) == trained.step:
            raise
    return open_set(_on_device(load(there)))


def _make_set(samples: SampleSet, world: World) -> None:
    rank, world_size = world.rank, world.size
    mine = range(rank, samples.chunks, world_size)
    missing = [chunk for chunk in mine if not samples.is_made(chunk)]
    total, left = (sum(map(samples.size, chunks)) for chunks in (mine, missing))
    title = f"generating, process 0 of {world_size}" if world_size > 1 else "generating"
    with Progress(title, total, "images", done=total - left, shown=rank == 0) as progress:
        for chunk in missing:  # there is nothing to agree upon: no rank waits for another
            samples.make_chunk(chunk)
            progress.advance(samples.size(chunk))


def _make_grid(
    trained: Trained,
    count: int,
    seed: int,
    sampler: SamplerConfig,
    batch: int,
    zoom: int,
    target: Path,
) -> None:
    finished: list[Tensor] = []
    trail: list[Tensor] = []
    with Progress(
        f"generating {count} images", count * sampler.steps, "denoising steps"
    ) as progress:
        for start in range(0, count, batch):
            size = min(batch, count - start)
            for state in generate(
                trained.network,
                trained.tokenizer,
                seed=seed,
                start=start,
                count=size,
                config=sampler,
            ):
                if start == 0:
                    trail.append(state.image[:8].float().cpu())
                progress.advance(size)
            finished.append(state.image.float().cpu())
    image_grid(torch.cat(finished), columns=max(1, round(count**0.5)), zoom=zoom).save(target)
    denoising_grid(trail, zoom).save(target.with_name(target.stem + "-steps.png"))


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
