"""`addp scenes`: data for segmentation and detection without a download."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.scenes.settings import LARGEST, MOST_SCENES, SMALLEST
from trainer.config.options import LARGEST_SEED, AsJson, processes_option


def scenes(
    out: Annotated[Path, typer.Argument(help="folder to make")],
    training: Annotated[
        int, typer.Option("--scenes", min=1, max=MOST_SCENES, help="training scenes")
    ] = 500,
    held_out: Annotated[
        int, typer.Option(min=1, max=MOST_SCENES, help="validation scenes, of other emoji")
    ] = 100,
    size: Annotated[
        int, typer.Option(min=SMALLEST, max=LARGEST, help="side of a scene in pixels")
    ] = 128,
    seed: Annotated[
        int, typer.Option(min=-LARGEST_SEED - 1, max=LARGEST_SEED, help="of all draws")
    ] = 0,
    classes: Annotated[
        str | None,
        typer.Option(
            help="groups of emoji to show, with commas between, such as flags,food-drink; all nine "
            "if not given"
        ),
    ] = None,
    processes: Annotated[
        int | None, processes_option("processes that compose; else one for each core")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compose scenes of OpenMoji (CC BY-SA 4.0) with masks and boxes, in ADE20k's and COCO's
    layouts.

    Emoji of random size and turn lie over each other on plain and textured backgrounds. No emoji of
    a training scene stands in a validation scene. A folder that was begun is gone on with.
    """
    from data_pipeline.scenes.making import SHEET, make_scenes
    from data_pipeline.scenes.settings import SceneSettings, chosen_classes

    settings = SceneSettings(
        training=training,
        validation=held_out,
        size=size,
        seed=seed,
        classes=chosen_classes(classes),
    )
    made = make_scenes(out, settings, processes or len(os.sched_getaffinity(0)))
    if as_json:
        print(made.model_dump_json())
        return
    print(
        f"{out}: {made.training:,} training and {made.validation:,} validation scenes with "
        f"{made.emoji:,} emoji of {made.classes} classes; {made.composed:,} composed now"
        + (f", {made.scenes_per_second:g}/s" if made.composed else "")
    )
    print(f"look at {out / SHEET}")
