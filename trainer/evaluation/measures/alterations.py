"""Copies of images that are turned, moved and recoloured, each by its own draw."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.randomness import uniforms

# The most that a copy is changed by, each way.
TURN = 15.0  # degrees
SHIFT = 0.1  # of the side, along each axis of the turned frame
LIGHT = 0.2  # share of the brightness, of the contrast, and of the saturation
HUE = 36.0  # degrees of the hue circle: a tenth of it

_DRAWS = 7
# RGB to luma and two chroma axes (YIQ), in which a turn of the chroma is a change of hue.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def altered(images: Tensor, seed: int, start: int = 0, strength: float = 1.0) -> Tensor:
    """Return a copy of each image (N, 3, H, W) in [0, 1], turned, moved and recoloured.

    What is drawn for image i depends on (seed, start + i) alone. What a turn brings into the frame
    takes the colour of the border. strength: factor of all limits.
    """
    drawn = uniforms(seed, "altered", start, len(images), _DRAWS) * 2 - 1
    turn, across, down, *colours = torch.from_numpy(drawn * strength).float().to(images.device).T
    return _recoloured(_moved(images, turn, across, down), *colours)


def _moved(images: Tensor, turn: Tensor, across: Tensor, down: Tensor) -> Tensor:
    angle = turn * math.radians(TURN)
    cos, sin, side = angle.cos(), angle.sin(), 2 * SHIFT  # a grid goes from -1 to 1
    maps = torch.stack([cos, -sin, side * across, sin, cos, side * down], 1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recoloured(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    yiq = _YIQ.to(images.device)
    luma, *chroma = torch.einsum("ij,njhw->inhw", yiq, images)
    factors = 1 + LIGHT * torch.stack([brightness, contrast, saturation])
    light, spread, vivid = factors[:, :, None, None]
    luma = luma * light
    middle = luma.mean((1, 2), keepdim=True)
    angle = (hue * math.radians(HUE))[:, None, None]
    cos, sin = angle.cos() * vivid, angle.sin() * vivid
    i, q = chroma[0] * cos - chroma[1] * sin, chroma[0] * sin + chroma[1] * cos
    changed = torch.stack([middle + (luma - middle) * spread, i, q])
    return torch.einsum("ij,jnhw->nihw", yiq.inverse(), changed).clamp(0, 1)
