"""What a trained predictor knows at another size of images before it is trained there: with
positions that are interpolated, and with fresh ones.

    python -m benchmarks.resizing runs/demo --images runs/demo/images --sizes 24 32 48 64

For each size: the cross-entropy of masked tokens of held-out images, nat, as the mean over images
and its standard error. `unigram` knows the frequencies of these tokens and nothing else. The
tokenizer is the same one at all sizes. Fresh positions are what a network of that size is built
with.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.images.images import read_image
from data_pipeline.images.sources import split_of
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from model.masking import mage_masks
from model.networks import build
from model.positions import TABLES
from model.predictor import TokenPredictor
from model.resizing import for_image_size
from model.vq import VQTokenizer
from model.weights import load_network, load_tokenizer

_BATCH = 16


def pixels_of(images: str, size: int) -> Tensor:
    """The centre crops of the held-out images, (N, 3, size, size) in [0, 1]."""
    source, recipe = split_of(images, "val"), ViewRecipe.center(size)
    views = [
        make_view(read_image(source.store, entry), entry.id, 0, recipe) for entry in source.images
    ]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255


def with_fresh_positions(predictor: TokenPredictor) -> TokenPredictor:
    """The same weights, with the positions of a network that was just built."""
    torch.manual_seed(0)
    fresh = build("predictor", predictor.config, predictor.geometry).eval()
    trained = {k: v for k, v in predictor.state_dict().items() if k not in TABLES}
    fresh.load_state_dict(fresh.state_dict() | trained)
    assert isinstance(fresh, TokenPredictor)
    return fresh


def cross_entropy(predictor: TokenPredictor, ids: Tensor, draws: int) -> Tensor:
    """Of the masked tokens, nat, for each image: the mean over so many draws of masks."""
    losses = []
    for draw in range(draws):
        parts = []
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            mask = mage_masks(0, draw, start, *batch.shape).mask
            logits = predictor.logits(batch, mask)
            loss = F.cross_entropy(logits.transpose(1, 2).float(), batch, reduction="none")
            parts.append((loss * mask).sum(1) / mask.sum(1))
        losses.append(torch.cat(parts))
    return torch.stack(losses).mean(0)


@torch.inference_mode()
def measured(
    tokenizer: VQTokenizer, predictor: TokenPredictor, images: str, size: int, draws: int
) -> dict[str, float | int]:
    """The row of one size."""
    codes, _ = for_image_size(tokenizer, size)
    resized, _ = for_image_size(predictor, size)
    ids = torch.cat([codes.encode(part) for part in pixels_of(images, size).split(_BATCH)])
    shares = torch.bincount(ids.flatten(), minlength=codes.config.codebook_size) / ids.numel()
    row: dict[str, float | int] = {
        "size": size,
        "tokens": ids.shape[1],
        "images": len(ids),
        "unigram": round(float(torch.special.entr(shares).sum()), 3),
    }
    for name, network in (("interpolated", resized), ("fresh", with_fresh_positions(resized))):
        losses = cross_entropy(network, ids, draws)
        row[name] = round(float(losses.mean()), 3)
        row[f"{name}_error"] = round(float(losses.std() / len(losses) ** 0.5), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="folder of a demo, for its tokenizer and predictor")
    parser.add_argument("--images", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[24, 32, 48, 64])
    parser.add_argument("--draws", type=int, default=3, help="of masks, for each image")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.demo / "tokenizer" / "network.safetensors")
    predictor = load_network(options.demo / "predictor" / "network.safetensors", "predictor").eval()
    assert isinstance(predictor, TokenPredictor)
    for size in options.sizes:
        row = measured(tokenizer, predictor, options.images, size, options.draws)
        print(json.dumps(row), flush=True)
    print(json.dumps({"torch": torch.__version__, "processor": platform.processor()}))


if __name__ == "__main__":
    main()
