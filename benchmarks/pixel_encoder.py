"""An encoder of the demo's size, pre-trained by plain reconstruction of pixels: a baseline for
`benchmarks.dense --beside reconstruction=FILE`.

    python -m benchmarks.pixel_encoder runs/demo/images reconstruction.safetensors

Three of four patches of an image are made grey, and a linear layer on the encoder's features gives
their pixels back (SimMIM, arXiv 2111.09886, with the mean colour in place of a mask token). It sees
as many samples of the same images, in batches as large, as the demo's ADDP, with the same learning
rate over time. No part of ADDP's pre-training is in it but the network.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.demo.stages import config_of
from data_pipeline.images.sources import split_of
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.progress import Progress
from data_pipeline.streaming.image_loader import ImageLoader
from model.addp import ADDP
from model.randomness import uniforms
from model.weights import save_network
from trainer.objectives.images import pixels_on
from trainer.schedule import learning_rate

_HIDDEN = 0.75  # of the patches


def patches(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, L, 3 * patch * patch), in raster order."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="class folders, those of the demo")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = config_of("addp")
    geometry, batch, device = config.geometry, config.batch.global_batch, torch.device("cpu")
    torch.manual_seed(options.seed)
    network = ADDP(geometry, config.addp.sizes)
    to_pixels = nn.Linear(config.addp.sizes.dim, 3 * geometry.patch_size**2)
    parameters = [*network.parameters(), *to_pixels.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.05)
    loader = ImageLoader(
        split_of(options.images, "train"),
        ViewRecipe(size=geometry.image_size, views=1, scale=(0.75, 1.0)),
        global_batch=batch,
        seed=options.seed,
    )
    total = int(config.schedule.total)
    began, losses = time.process_time(), []
    with closing(loader), Progress("pre-training", total, "steps") as progress:
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    config.learning_rate, config.schedule, loader.schedule, step
                )
            images = pixels_on(device, loader.batch(step, 0, batch))
            drawn = uniforms(options.seed, "pixels", step * batch, batch, geometry.tokens)
            hidden = torch.from_numpy(drawn < _HIDDEN)
            at = hidden.view(batch, 1, geometry.grid, geometry.grid)
            shown = torch.where(
                F.interpolate(at.float(), scale_factor=geometry.patch_size) > 0,
                network.mean,
                images,
            )
            found = to_pixels(network.encode(shown)[:, 1:])
            loss = F.mse_loss(found[hidden], patches(images, geometry.patch_size)[hidden])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            progress.advance(1)
    save_network(network, options.out)
    print(
        json.dumps(
            {
                "file": str(options.out),
                "steps": total,
                "samples": total * batch,
                "first_loss": round(sum(losses[:20]) / 20, 4),
                "last_loss": round(sum(losses[-20:]) / 20, 4),
                "cpu_seconds": round(time.process_time() - began, 1),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
