"""Completing images: keep some tokens of an image and generate the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.images.image_grid import image_grid
from data_pipeline.images.images import ImageEntry, is_image, read_image
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.storage import LocalStore
from model.errors import ConfigError, DataError
from model.sampler import generate, given_tokens
from model.sampling_options import SamplingOptions
from trainer.evaluation.options import KEEP
from trainer.evaluation.trained import Trained, frozen_predictor

_MOST = 8  # images
_VARIANTS = 4  # of each


def generated_mask(keep: str, grid: int) -> Tensor:
    """Return (L,) bool for a grid of L = grid * grid tokens, True where a token is generated.

    keep: one of `KEEP`, or a mask image: a token is generated where any pixel of its patch is
    white. Raises ConfigError.
    """
    mask = torch.ones(grid, grid, dtype=torch.bool)
    half, quarter = grid // 2, max(1, grid // 4)
    inner = (slice(quarter, grid - quarter),) * 2
    halves = {  # views of the mask
        "left": mask[:, :half],
        "right": mask[:, half:],
        "top": mask[:half],
        "bottom": mask[half:],
    }
    if keep in halves:
        halves[keep].fill_(False)
    elif keep in KEEP:
        mask[inner] = False
        mask = ~mask if keep == "border" else mask
    else:
        try:
            with Image.open(keep) as file:
                side = grid * 16
                white = (
                    np.asarray(file.convert("L").resize((side, side), Image.Resampling.NEAREST))
                    > 127
                )
        except OSError as error:
            raise ConfigError(
                f"--keep {keep}: neither one of {', '.join(KEEP)} nor a readable mask image"
            ) from error
        mask = torch.from_numpy(white).view(grid, 16, grid, 16).any(3).any(1)
    if not mask.any():
        raise ConfigError(f"--keep {keep} leaves nothing to generate")
    return mask.flatten()


def read_images(path: Path, size: int) -> Tensor:
    """Read an image, or the first few of a folder, cropped to (N, 3, size, size) in [0, 1].

    Raises DataError.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if is_image(p.name))[:_MOST]
    if not files:
        raise DataError(f"{path} holds no images")
    try:
        entries = [
            (LocalStore(f.parent), ImageEntry(f.name, 0, f.name, f.stat().st_size)) for f in files
        ]
        views = [
            make_view(read_image(store, entry), entry.id, 0, ViewRecipe.center(size))
            for store, entry in entries
        ]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def completed_images(
    trained: Trained, path: Path, keep: str, *, seed: int, sampling: SamplingOptions, zoom: int
) -> Image.Image:
    """Draw a grid with one row an image: the image, what is kept of it, and a few completions.

    path, keep: as `read_images` and `generated_mask` take them. Raises ConfigError or DataError.
    """
    network, tokenizer, config = trained.network, trained.tokenizer, trained.config
    device, geometry = network.pos_embed.device, network.geometry
    images = read_images(path, geometry.image_size).to(device)
    mask = generated_mask(keep, geometry.grid).to(device)
    predictor = frozen_predictor(config)
    if predictor is not None:
        predictor.to(device)
    patch = geometry.patch_size
    hidden = (
        mask.view(1, 1, geometry.grid, geometry.grid)
        .repeat_interleave(patch, 2)
        .repeat_interleave(patch, 3)
    )
    rows = []
    for number, image in enumerate(images):
        ids = tokenizer.encode(image[None].to(tokenizer.codebook.dtype)).expand(_VARIANTS, -1)
        start = given_tokens(tokenizer, predictor, ids, mask.expand(_VARIANTS, -1))
        states = generate(
            network,
            tokenizer,
            seed=seed,
            start=number * _VARIANTS,
            count=_VARIANTS,
            sampling=sampling,
            given=start,
            advisers=trained.advisers,
        )
        for state in states:
            last = state
        rows.append(
            torch.cat([image[None], image[None].masked_fill(hidden, 0.5), last.image]).cpu()
        )
    return image_grid(torch.cat(rows), columns=2 + _VARIANTS, zoom=zoom)
