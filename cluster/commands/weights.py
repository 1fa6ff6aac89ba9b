"""`addp export` and `addp import`: networks go to the formats of other programs, and come back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.config import LARGEST_IMAGE, MOST_HEADS, WIDEST
from trainer.config.options import LocalTokenizer, TrainedWeights, step_option
from trainer.formats import Dtype, Format


def export(
    source: Annotated[
        str,
        typer.Argument(help="run folder, s3:// that a run uploads to, or a network's safetensors"),
    ],
    out: Annotated[
        Path, typer.Argument(help="file (addp, timm: .pth or .safetensors) or folder to make")
    ],
    *,
    form: Annotated[Format, typer.Option("--format", help="described above")] = "native",
    step: Annotated[
        int | None, step_option("of a run: this checkpoint; else the newest valid one")
    ] = None,
    weights: TrainedWeights = "raw",
    tokenizer_norm: Annotated[
        Literal["drop", "keep"],
        typer.Option(help="timm: drop, as the reference fine-tunes; keep, as norm_pre"),
    ] = "drop",
    tokenizer: LocalTokenizer = None,
    dtype: Annotated[
        Dtype, typer.Option(help="of the values; float16 takes half of the room")
    ] = "float32",
) -> None:
    """Write a trained network for other programs.

    native: OUT/network.safetensors and config.json, plain tensors whatever ZeRO stage and
    number of ranks wrote the checkpoint. addp: one file in the official layout, with the frozen
    networks. timm: a plain ViT under the names of vit_base_patch16; its inputs are normalised with
    ImageNet's mean and deviation. huggingface: a folder with model.safetensors, the frozen networks
    beside it, config.json and a model card with the code that loads it.
    """
    from data_pipeline.storage.output import check_output, writing
    from trainer import export as exporting

    check_output(out, (".pth", ".safetensors") if form in ("addp", "timm") else ())
    network = exporting.open_network(source, step, weights)
    with writing(out):
        exporting.export(network, form, out, tokenizer_norm, tokenizer, dtype)
    print(out)


def import_weights(
    file: Annotated[
        Path, typer.Argument(help="official ADDP, MAGE or VQGAN file (.pth, .ckpt, .safetensors)")
    ],
    out: Annotated[
        Path, typer.Argument(help="folder for tokenizer.safetensors, predictor.safetensors, ...")
    ],
    *,
    heads: Annotated[
        int | None, typer.Option(min=1, max=MOST_HEADS, help="encoder heads of the ADDP network")
    ] = None,
    decoder_heads: Annotated[
        int | None, typer.Option(min=1, max=MOST_HEADS, help="its decoder heads")
    ] = None,
    predictor_heads: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_HEADS, help="encoder heads of the predictor (MAGE)"),
    ] = None,
    predictor_decoder_heads: Annotated[
        int | None, typer.Option(min=1, max=MOST_HEADS, help="its decoder heads")
    ] = None,
    norm_groups: Annotated[
        int | None, typer.Option(min=1, max=WIDEST, help="groups of the tokenizer's GroupNorms")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST_IMAGE, help="pixels, of a tokenizer or predictor that stands alone"
        ),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST_IMAGE, help="pixels: write the networks for images of this size"
        ),
    ] = None,
) -> None:
    """Turn official weights into files that describe themselves, each network its own; no code in
    them is run.

    Our own exports state all sizes. No tensor of a published file tells those that the options
    name, but for --resize: what is not given is then taken as published (heads: width / 64, decoder
    heads 16, groups 32, 256 pixels), and named on standard error; where that does not fit, the
    option must be given.

    --resize also takes a single network of ours to another size. Positions are interpolated, which
    standard error names; the network should then be trained further.
    """
    from data_pipeline.storage.output import check_output, writing
    from model.official import import_official
    from model.official_sizes import Untold
    from model.resizing import resized_networks
    from model.weights import save_network

    check_output(out)
    given = Untold(
        heads, decoder_heads, predictor_heads, predictor_decoder_heads, norm_groups, image_size
    )
    networks, guesses = import_official(file, given)
    for guess in guesses:
        print(guess, file=sys.stderr)
    if resize is not None:
        networks, changes = resized_networks(networks, resize)
        for change in changes:
            print(change, file=sys.stderr)
    for kind, network in networks.items():
        with writing(out):
            save_network(network, out / f"{kind}.safetensors")
        print(
            json.dumps(
                {
                    "kind": kind,
                    "file": str(out / f"{kind}.safetensors"),
                    **network.config.model_dump(),
                }
            )
        )
