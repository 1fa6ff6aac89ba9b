"""Generate images with an ADDP network: a grid to look at, or a set of any size to measure.

python -m trainer.evaluation.generate                    a grid of the network that ships
python -m trainer.evaluation.generate RUN --count 64     a grid, and its denoising steps
python -m trainer.evaluation.generate RUN --class cat    a grid of one class, not of all in turn
python -m trainer.evaluation.generate RUN --complete IMAGE --mask right
python -m trainer.evaluation.generate RUN --between A B  what is between two images
deepspeed --module trainer.evaluation.generate RUN --count 50000 --into FOLDER

The last makes a set on all ranks. A set that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from model.sampling_options import SAMPLERS, SamplingOptions
from model.shipped import CLASSES, SAMPLER, TITLE
from trainer.config.options import (
    LocalRank,
    LocalTokenizer,
    TrainedWeights,
    Zoom,
    from_models,
    step_option,
)
from trainer.evaluation.options import EditOptions, Output, SetOptions

if TYPE_CHECKING:
    from trainer.distributed.world import World

_MOST_IN_GRID = 4096  # images, which are in memory together


@from_models
def main(
    run: Annotated[
        str | None,
        typer.Argument(
            help="folder of an ADDP run, finished or not, or s3:// that it uploads to, or the "
            "folder of an export; if not given, the network that ships, of emoji"
        ),
    ] = None,
    *,
    samples: SetOptions,
    sampling: SamplingOptions,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="generate this class of a network that learned classes, by its name or number, or "
            "all of them, or none; give it several times, and the images take turns, each class in "
            "a row of the grid. If not given: all, or without RUN those that it draws best; with "
            "--complete and --between none, since what is given says what it is",
        ),
    ] = None,
    weights: TrainedWeights = "raw",
    checkpoint: Annotated[
        int | None,
        step_option(
            "step of the checkpoint to take; if not given, the finished network or the newest one"
        ),
    ] = None,
    tokenizer: LocalTokenizer = None,
    editing: EditOptions,
    output: Output,
    zoom: Zoom = 1,
    local_rank: LocalRank = None,
) -> None:
    """Generate a grid of samples with the steps by which the first few came about, an edit of given
    images, or a set of files of either.

    A set holds the same files for any number of processes; if it was cut off, the same command
    finishes it.
    """
    from trainer.distributed.world import take_world

    del local_rank
    world = take_world()
    _check_together(samples, editing, output, zoom)
    _check(run, samples.count, editing, output, world)
    if run is None:
        sampling = sampling.or_else(SAMPLER)
        said = f"without RUN, this is {TITLE}, with {_options(sampling)}"
        if not classes and not editing.given and sampling.class_guidance:
            classes = list(CLASSES)
            said += ", and of the classes that it draws best (--class all: of all)"
        if world.rank == 0:
            print(said, file=sys.stderr)
    from trainer.evaluation.generating import write_image, write_set
    from trainer.evaluation.trained import load_addp

    load = partial(load_addp, run, weights, tokenizer=tokenizer)
    if output.into is not None:
        made = write_set(
            load, samples, sampling, editing, checkpoint, output.into, world, classes or ()
        )
    else:
        made = write_image(
            load(checkpoint),
            samples,
            sampling,
            weights=weights,
            editing=editing,
            zoom=zoom,
            folder=run or ".",
            out=output.out,
            asked=classes or (),
        )
        beside = f"{made.with_suffix('.json')} says what it depends on"
        if not editing.given:
            beside += f", {made.with_name(made.stem + '-steps.png')} how the first ones came about"
        print(beside, file=sys.stderr)
    print(made)


def _options(sampling: SamplingOptions) -> str:
    """Say what became of the options in which the network that ships differs from others."""
    values = {name: getattr(sampling, name) for name in SAMPLERS[SAMPLER]}
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in values.items())


def _check_together(samples: SetOptions, editing: EditOptions, output: Output, zoom: int) -> None:
    """Refuse options that would change nothing, for lack of the one that they belong to. Raises
    typer.BadParameter."""
    given = samples.model_fields_set | editing.model_fields_set
    for name, has_effect, needed in (
        ("mask", editing.complete is not None, "--complete"),
        ("frames", editing.between is not None, "--between"),
        ("variants", editing.given, "--complete or --between"),
        ("container", output.into is not None, "--into"),
    ):
        if name in given and not has_effect:
            raise typer.BadParameter(
                f"it has no effect without {needed}; give that, too, or leave this out",
                param_hint=f"--{name}",
            )
    if zoom > 1 and output.into is not None:
        raise typer.BadParameter(
            "it enlarges a grid, and --into makes a set of files; leave one of them out",
            param_hint="--zoom",
        )


def _check(run: str | None, count: int, editing: EditOptions, output: Output, world: World) -> None:
    """Refuse what cannot be made, before anything is loaded. Raises typer.BadParameter or
    ConfigError."""
    from data_pipeline.storage import is_remote
    from data_pipeline.storage.output import check_output
    from model.errors import ConfigError
    from trainer.run_folder import RunFolder

    if editing.complete is not None and editing.between is not None:
        raise typer.BadParameter(
            "--complete and --between are two commands; give one of them", param_hint="--between"
        )
    if output.into is not None and output.out is not None:
        raise typer.BadParameter(
            "--into makes a set of files, and --out a grid; give one of them", param_hint="--out"
        )
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
    elif run is None:
        check_output(RunFolder(".").samples)
    elif is_remote(run):
        raise typer.BadParameter(
            "give --out FILE or --into FOLDER for a run on a store", param_hint="--out"
        )


if __name__ == "__main__":
    from trainer.command import run_ranks

    run_ranks(main)
