"""Generate pictures with a trained ADDP network, and put them into a grid.

python -m trainer.generate RUN --count 64
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_pipeline.picture_grid import picture_grid
from model.addp import ADDP
from model.sampler import SamplerConfig, generate
from model.vq import VQTokenizer
from model.weights import load_network
from trainer.evaluate import completed_run, suffix
from trainer.run_folder import write_json

_BATCH = 64


def main(
    run: Annotated[Path, typer.Argument(help="run folder of a completed ADDP run")],
    count: Annotated[int, typer.Option(help="pictures", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="picture i is a function of (seed, i)")] = 0,
    steps: Annotated[int, typer.Option(help="N, denoising steps", min=1)] = 20,
    schedule: Annotated[str, typer.Option(help="cosine or linear")] = "cosine",
    choice_temperature: Annotated[float, typer.Option(help="noise of the choice which tokens stay")] = 6.0,
    top_p: Annotated[float, typer.Option(help="nucleus of the token distribution", min=0.01, max=1)] = 1.0,
    weights: Annotated[Literal["raw", "ema"], typer.Option(help="the trained weights, or their average")] = "raw",
    zoom: Annotated[int, typer.Option(help="enlarge each picture so many times", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="PNG file; RUN/samples/grid.png if not given")] = None,
) -> None:
    """Generate a grid of samples, and beside it the steps by which the first few came about, and the settings."""
    if schedule not in ("cosine", "linear"):
        raise typer.BadParameter(f"{schedule}: cosine or linear", param_hint="--schedule")
    folder, config = completed_run(run)
    assert config.tokenizer.weights is not None
    network = load_network(folder.trained(weights), "addp").eval()
    tokenizer = load_network(config.tokenizer.weights, "tokenizer", config=config.tokenizer.sizes).eval()
    assert isinstance(network, ADDP) and isinstance(tokenizer, VQTokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    tokenizer.to(device)
    sampler = SamplerConfig(steps, cast(Literal["cosine", "linear"], schedule), choice_temperature, top_p=top_p)
    finished: list[Tensor] = []
    trail: list[Tensor] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("generating", total=count * steps)
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            for state in generate(network, tokenizer, seed, start, size, sampler):
                if start == 0:
                    trail.append(state.image[:8].cpu())
                progress.advance(task, size)
            finished.append(state.image.cpu())
    target = out or folder.samples / f"grid{suffix(weights)}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(torch.cat(finished), columns=max(1, round(count**0.5)), zoom=zoom).save(target)
    shown = [round(i * (steps - 1) / min(7, max(1, steps - 1))) for i in range(min(8, steps))]
    rows = torch.stack([trail[i] for i in shown], 1).flatten(0, 1)  # one row a picture, its steps from left to right
    picture_grid(rows, columns=len(shown), zoom=zoom).save(target.with_name(target.stem + "-steps.png"))
    write_json(target.with_suffix(".json"), {"count": count, "seed": seed, "weights": weights, **sampler._asdict()})
    print(target)


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
