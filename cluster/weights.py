"""`addp export` and `addp import`: networks to and from the formats of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.run_folder import Format, Weights


def export(
    source: Annotated[str, typer.Argument(help="run folder, s3:// that a run uploads to, or a network's safetensors")],
    out: Annotated[Path, typer.Argument(help="file (addp, timm: .pth or .safetensors) or folder to make")],
    form: Annotated[Format, typer.Option("--format", help="see above")] = "native",
    step: Annotated[int | None, typer.Option(help="of a run: this checkpoint; else the newest valid one")] = None,
    weights: Annotated[Weights, typer.Option(help="of a run: the trained weights, or their average")] = "raw",
    tokenizer_norm: Annotated[
        Literal["drop", "keep"],
        typer.Option(help="timm: drop, as the reference fine-tunes; keep, as norm_pre"),
    ] = "drop",
    tokenizer: Annotated[Path | None, typer.Option(help="the run's tokenizer, where it lies elsewhere here")] = None,
) -> None:
    """Write a trained network for other programs.

    native: OUT/network.safetensors and config.json, plain float32 tensors whatever ZeRO stage and number of ranks wrote
    the checkpoint. addp: one file in the official layout, with the frozen networks. timm: a plain ViT under the names
    of vit_base_patch16; its inputs are normalised with ImageNet's mean and deviation. huggingface: a folder with
    model.safetensors, config.json and a model card with the code that loads it.
    """
    from data_pipeline.output import check_output
    from trainer import export as exporting

    check_output(out, (".pth", ".safetensors") if form in ("addp", "timm") else ())
    print(exporting.export(exporting.open_network(source, step, weights), form, out, tokenizer_norm, tokenizer))


def import_weights(
    file: Annotated[Path, typer.Argument(help="official ADDP, MAGE or VQGAN file (.pth, .ckpt, .safetensors)")],
    out: Annotated[Path, typer.Argument(help="folder for tokenizer.safetensors, predictor.safetensors, ...")],
    heads: Annotated[int | None, typer.Option(help="encoder heads; else width / 64, as published")] = None,
    decoder_heads: Annotated[int | None, typer.Option(help="decoder heads; else 16, as published")] = None,
    image_size: Annotated[int, typer.Option(help="pixels, of a VQGAN or MAGE file")] = 256,
) -> None:
    """Turn official weights into files that describe themselves, each network its own; no code in them is run."""
    from model.official import import_official
    from model.weights import save_network

    for kind, network in import_official(file, heads, decoder_heads, image_size).items():
        save_network(network, out / f"{kind}.safetensors")
        print(json.dumps({"kind": kind, "file": str(out / f"{kind}.safetensors"), **network.config.model_dump()}))
