"""Options that several commands take: each has one name, one meaning and one range. Imports no
torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model.precision import InferencePrecision
from trainer.config.schema import MOST_RANKS, MOST_STEPS
from trainer.run_folder import Weights

MOST_IMAGES = 100_000_000  # that one command makes
_LARGEST_GRID_BATCH = 65_536


def seed_option(meaning: str) -> Any:
    return typer.Option(min=-(1 << 63), max=(1 << 63) - 1, help=meaning)


def step_option(meaning: str) -> Any:
    return typer.Option(min=0, max=MOST_STEPS, help=meaning)


def batch_option(meaning: str) -> Any:
    return typer.Option(min=1, max=_LARGEST_GRID_BATCH, help=meaning)


def held_out_option(meaning: str) -> Any:
    return typer.Option(min=0, max=1, help=meaning)


def gpus_option(meaning: str) -> Any:
    return typer.Option(min=1, max=MOST_RANKS, help=meaning)


def processes_option(meaning: str) -> Any:
    """Of one machine."""
    return typer.Option(min=1, max=1024, help=meaning)


# Which configuration: see trainer/config/arguments.py.
RunArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|key=value",
        help="run file, as in configs/, and overrides, as batch.micro=32, in any order",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="run file, if it is not given as an argument")
]

AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
TrainedWeights = Annotated[Weights, typer.Option(help="the trained weights, or their average")]
LocalTokenizer = Annotated[
    Path | None, typer.Option(help="the run's tokenizer, where it lies elsewhere on this machine")
]
Zoom = Annotated[int, typer.Option(min=1, max=64, help="grid: enlarge each image by this factor")]
LocalRank = Annotated[int | None, typer.Option("--local_rank", hidden=True)]  # launchers append it

# How images are generated: see model/sampler.py.
DenoisingSteps = Annotated[
    int, typer.Option(min=1, max=10_000, help="denoising steps (N in the paper)")
]
MaskSchedule = Annotated[
    Literal["cosine", "linear"],
    typer.Option(help="how the number of masked tokens falls with the steps"),
]
ChoiceTemperature = Annotated[
    float, typer.Option(min=0, max=1000, help="randomness in choosing the tokens that a step keeps")
]
Temperature = Annotated[
    Literal["dynamic", "constant"],
    typer.Option(help="dynamic: this randomness falls to 0; constant: it stays"),
]
TopP = Annotated[
    float,
    typer.Option(
        min=0.01, max=1, help="draw from the likeliest tokens that have this probability together"
    ),
]
Precision = Annotated[
    InferencePrecision, typer.Option(help="that the networks that generate compute in")
]
