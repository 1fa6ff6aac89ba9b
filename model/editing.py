"""Editing pictures by their tokens: an unknown part of one is completed, or two are interpolated.
`model.sampler` generates what is unknown; what is known never changes.

    completion      a mask of pixels --> tokens of which any pixel is masked --> generated

    interpolation   positions in a random order, the same in all frames:
                    a a a a a a . . b b    A keeps the first, B the last, and those between are
                    a a a . . . . b b b    generated; from frame to frame A has fewer, B has more
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.config import Geometry
from model.errors import ConfigError, DataError
from model.pictures import Picture, opened
from model.randomness import orders
from model.rgb import centred_square
from model.vq import VQTokenizer

MASKS = ("left", "right", "top", "bottom", "center", "border", "border:PIXELS")


def unknown_tokens(mask: Picture, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Return which tokens of a picture are to be generated, (L,) bool.

    mask: one of `MASKS`, whose pixels are those of the network's square; or a picture of the same
    size as the edited one, white where to generate. A token is unknown if any pixel is masked that
    its patch covers, be it in part. size: width and height of the edited picture.

    Raises ConfigError for a name that is none, and DataError for a mask of another size, and where
    nothing or everything is unknown.
    """
    pixels = _named(mask, geometry.image_size) if isinstance(mask, str) else None
    if pixels is None:
        if isinstance(mask, str) and not Path(mask).is_file():
            raise ConfigError(
                f"the mask {mask} is neither one of {', '.join(MASKS)} nor an image file"
            )
        image = opened(mask)[0]
        if image.size != size:
            raise DataError(
                "the mask has {} x {} pixels, and the picture {} x {}; make a mask of the "
                "picture's size".format(*image.size, *size)
            )
        pixels = np.asarray(image.convert("L")) > 127
    unknown = _touched(pixels, geometry.grid)
    if not unknown.any():
        raise DataError(
            "the mask leaves nothing to generate: it is black all over the picture's centred "
            "square, which is what the network sees"
        )
    if unknown.all():
        raise DataError(
            f"the mask leaves nothing known: it touches each of the {geometry.tokens} tokens; mask "
            "less, or generate without a picture"
        )
    return torch.from_numpy(unknown).flatten()


def _named(name: str, side: int) -> NDArray[np.bool_] | None:
    """Return the mask of a name, (side, side), or None if it is no name of a mask."""
    mask = np.zeros((side, side), np.bool_)
    half, quarter = side // 2, side // 4
    border, colon, width = name.partition(":")
    if border == "border":
        wide = int(width) if width.isdecimal() else 0 if colon else quarter
        if not 0 < wide < (side + 1) // 2:
            raise ConfigError(
                f"the mask {name}: a border has a width in pixels, of the network's {side} x {side}"
                f", from 1 to {(side - 1) // 2}"
            )
        mask[:] = True
        mask[wide : side - wide, wide : side - wide] = False
    elif name == "center":
        mask[quarter : side - quarter, quarter : side - quarter] = True
    elif name in ("left", "right"):
        mask[:, slice(half) if name == "left" else slice(half, None)] = True
    elif name in ("top", "bottom"):
        mask[slice(half) if name == "top" else slice(half, None)] = True
    else:
        return None
    return mask


def _touched(pixels: NDArray[np.bool_], grid: int) -> NDArray[np.bool_]:
    """Return which of the grid x grid patches of the centred square touch a pixel that is True."""
    height, width = pixels.shape
    left, top, right, bottom = centred_square(width, height)
    rows = np.stack([pixels[a:b].any(0) for a, b in _covered(top, bottom, grid)])
    return np.stack([rows[:, a:b].any(1) for a, b in _covered(left, right, grid)], 1)


def _covered(start: float, end: float, cells: int) -> list[tuple[int, int]]:
    """Return the pixels, from and to, that each of so many equal cells covers, be it in part."""
    edges = [start + (end - start) * i / cells for i in range(cells + 1)]
    return [(math.floor(a), math.ceil(b)) for a, b in pairwise(edges)]


def hide(images: Tensor, unknown: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in which the patches of unknown tokens (L,) are filled from their
    edges inwards with the mean of what is beside them."""
    grid = math.isqrt(len(unknown))
    hidden = unknown.view(1, 1, grid, grid).to(images)
    known = 1 - F.interpolate(hidden, images.shape[-2:], mode="nearest")
    images = images * known
    while not bool(known.all()):
        beside = F.avg_pool2d(known, 3, 1, 1)
        mean = F.avg_pool2d(images, 3, 1, 1) / beside.clamp_min(1e-9)
        images = torch.where(known > 0, images, mean)
        known = (beside > 0).to(images)
    return images


@torch.no_grad()
def known_tokens(tokenizer: VQTokenizer, images: Tensor, unknown: Tensor) -> Tensor:
    """Return the ids (B, L) of images (B, 3, H, W); those of unknown tokens (L,) mean nothing.

    A tokenizer sees far beyond a token's patch, so that the ids around a hole would tell of what
    stood there: the tokenizer is given what `hide` leaves.
    """
    return tokenizer.encode(hide(images, unknown))


def between(
    a: Tensor, b: Tensor, share: float, *, seed: int, start: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return the ids (count, L) of the pictures start .. start+count-1 between A and B, and which
    of them are unknown, (count, L) bool.

    a, b: ids (L,). share: t in (0, 1), the way from A to B. Where A and B have the same token, it
    stays. Of the other positions A keeps the share (1 - t) m, and B t m, with m = max(t, 1 - t);
    both are rounded down, so that a token at least is unknown, and half of them in the middle.
    Picture i takes positions in an order that depends on (seed, i) alone: A only loses tokens as t
    grows, and B only gains them. Raises DataError where A and B have the same tokens.
    """
    different = a != b
    n = int(different.sum())
    if n == 0:
        raise DataError("both pictures have the same tokens, so there is nothing between them")
    most = max(share, 1 - share)
    first, last = int((1 - share) * most * n), int(share * most * n)
    order = torch.from_numpy(orders(seed, "between", start, count, len(a))).to(a.device)
    counts = different[order]  # in this order, as all below
    rank = counts.cumsum(1) - 1
    of_b = counts & (rank >= n - last)
    unknown = counts & (rank >= first) & ~of_b
    nowhere = torch.zeros_like(counts)
    ids = torch.where(nowhere.scatter(1, order, of_b), b, a)
    return ids, nowhere.scatter(1, order, unknown)
