"""`addp demo`: the whole road, from images to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.config.options import processes_option


def demo(
    images: Annotated[
        Path | None, typer.Option(help="your own images in class folders; OpenMoji if not given")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for its runs and report; else runs/demo, or runs/demo-quick"),
    ] = None,
    processes: Annotated[int, processes_option("ranks (processes)")] = 2,
    scale: Annotated[
        float,
        typer.Option(min=0.001, max=1000, help="length of the trainings; 1: as in the README"),
    ] = 1.0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="pictures in a fraction of the time, and no figures: emoji start from the network "
            "that ships",
        ),
    ] = False,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="go on to dense transfer: a segmenter and a detector on the encoder"
        ),
    ] = False,
) -> None:
    """Go the whole road on real images, from a tokenizer to a report.

    Trains a tokenizer, makes token shards, trains the predictor and ADDP, samples, probes, reports.
    With --dense it goes on: composes scenes, trains a segmenter and a detector, and measures both.
    """
    from cluster.demo.run import run_demo
    from trainer.distributed.world import refuse_tasks

    refuse_tasks("addp demo")
    folder = out or Path("runs/demo-quick" if quick else "runs/demo")
    run_demo(images, folder, processes, scale, quick, dense)
