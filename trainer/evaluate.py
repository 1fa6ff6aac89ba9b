"""Held-out figures of a trained network, as JSON on standard output and in RUN/evaluation/.

python -m trainer.evaluate RUN --tokens TOKENS/val --train-tokens TOKENS/train     (predictor, ADDP)
python -m trainer.evaluate RUN --pictures PICTURES                                 (tokenizer)
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from data_pipeline.loader import TokenLoader
from data_pipeline.pictures import BadPicture, Split, read_picture
from data_pipeline.sources import split_of
from data_pipeline.views import ViewRecipe, make_view
from model.addp import ADDP
from model.errors import ConfigError
from model.masking import DenoisingMasks, denoising_masks
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import load_network
from trainer.config import RunConfig, load_config
from trainer.objectives import load_frozen
from trainer.run_folder import RunFolder, Weights, write_json

_BATCH = 64
_MASK_DRAWS = 8  # mask ratios that a picture is evaluated at
_SEED = 20230609  # of the masks: the same for every network that is compared


def held_out_pictures(
    folder: Path, size: int, held_out: float, split: Split = "val"
) -> tuple[Tensor, Tensor, list[str]]:
    """Centre crops of one split: pixels (N, 3, H, W) in [0, 1], labels (N,), class names."""
    source = split_of(folder, split, held_out)
    recipe = ViewRecipe.center(size)
    arrays, labels = [], []
    for picture in source.pictures:
        try:
            arrays.append(make_view(read_picture(source.store, picture), picture.id, 0, recipe))
            labels.append(picture.label)
        except BadPicture as error:
            print(f"left out: {error}", file=sys.stderr)
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.tensor(labels), list(source.classes)


@torch.no_grad()
def tokenizer_figures(tokenizer: VQTokenizer, pixels: Tensor) -> dict[str, float]:
    """PSNR of the mean squared error over all pictures (dB), and the share of the codebook that they use."""
    used = torch.zeros(tokenizer.config.codebook_size, dtype=torch.bool)
    squared = 0.0
    for images in torch.split(pixels, _BATCH):
        ids = tokenizer.encode(images)
        used[ids.flatten()] = True
        squared += float((tokenizer.decode(tokenizer.embed(ids)).clamp(0, 1) - images).square().sum())
    return {"psnr": -10 * math.log10(squared / pixels.numel()), "codebook_used": float(used.float().mean())}


def unigram_cross_entropy(train: np.ndarray, held_out: np.ndarray, codes: int) -> float:
    """Nats a token of held-out tokens under the code frequencies of the training tokens (add-one smoothed)."""
    counts = np.bincount(train.ravel(), minlength=codes) + 1.0
    return float(-np.log(counts / counts.sum())[held_out.ravel()].mean())


@torch.no_grad()
def masked_cross_entropy(predict: Any, ids: Tensor, codes: int) -> float:
    """Nats a token at positions masked in mask_t, over K codes, averaged over the training law's mask ratios.

    predict(ids, masks) -> logits over K (B, L, K).
    """
    total, count = 0.0, 0
    for draw in range(_MASK_DRAWS):
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            masks = denoising_masks(_SEED, draw, start, len(part), part.shape[1])
            logits = predict(part, masks)[..., :codes]
            nats = F.cross_entropy(logits.float().transpose(1, 2), part, reduction="none")
            total += float(nats[masks.mask_t].sum())
            count += int(masks.mask_t.sum())
    return total / count


def token_figures(config: RunConfig, network: Path, held_out: Path, train: Path) -> dict[str, float]:
    """Masked-token cross-entropy of a run's predictor or ADDP beside the unigram cross-entropy."""
    tokens = TokenLoader(held_out, global_batch=1, seed=0).all_tokens().ids
    train_tokens = TokenLoader(train, global_batch=1, seed=0).all_tokens().ids
    ids, codes = torch.from_numpy(tokens.astype(np.int64)), config.geometry.codebook_size
    unigram = unigram_cross_entropy(train_tokens, tokens, codes)
    if config.objective == "mage":
        predictor = load_network(network, "predictor").eval()
        assert isinstance(predictor, TokenPredictor)
        found = masked_cross_entropy(lambda i, m: predictor.logits(i, m.mask_t), ids, codes)
    else:
        found = masked_cross_entropy(addp_prediction(config, network), ids, codes)
    return {"cross_entropy": found, "unigram": unigram, "gain": unigram - found}


def addp_prediction(config: RunConfig, weights: Path) -> Any:
    """(ids, masks) -> ADDP's logits, on x_t decoded as in training."""
    frozen = load_frozen(config)
    network = load_network(weights, "addp").eval()
    assert isinstance(network, ADDP)

    def predict(ids: Tensor, masks: DenoisingMasks) -> Tensor:
        return network.logits(frozen(ids, masks).x_t, ids, masks.mask_t, ids.shape[1] - masks.masked)

    return predict


def suffix(weights: str) -> str:
    """Of the names of files about an average."""
    return "-ema" if weights == "ema" else ""


def completed_run(path: Path) -> tuple[RunFolder, RunConfig]:
    """Raises ConfigError where the run has not finished."""
    folder = RunFolder(path)
    if not folder.is_done:
        raise ConfigError(f"{path} is no completed run (no done.json); train it first, or let it finish")
    return folder, load_config(path / "config.resolved.yaml")


def main(
    run: Annotated[Path, typer.Argument(help="run folder of a completed run")],
    tokens: Annotated[Path | None, typer.Option(help="held-out token data set")] = None,
    train_tokens: Annotated[
        Path | None, typer.Option(help="training token data set, for the unigram frequencies")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="picture folder (tokenizer)")] = None,
    weights: Annotated[Weights, typer.Option(help="the trained weights, or their average")] = "raw",
) -> None:
    """Held-out figures of a run: PSNR and codebook use of a tokenizer, masked-token cross-entropy of the others."""
    folder, config = completed_run(run)
    if config.objective == "tokenizer":
        network = load_network(folder.trained(weights), "tokenizer").eval()
        assert isinstance(network, VQTokenizer)
        source = pictures or config.data.pictures
        assert source is not None
        pixels, _, _ = held_out_pictures(source, network.config.image_size, config.data.held_out)
        figures = tokenizer_figures(network, pixels)
    else:
        if tokens is None or train_tokens is None:
            raise typer.BadParameter("give --tokens and --train-tokens for a predictor or ADDP")
        figures = token_figures(config, folder.trained(weights), tokens, train_tokens)
    write_json(folder.evaluation / f"held-out{suffix(weights)}.json", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
