"""Dropout that costs little on CPUs.

PyTorch draws there 53 random bits for each element, one number after the other: at the sizes of
Base that takes nearly as long as the products between which the dropout stands. Here 16 bits decide
about an element, and the mask is kept as one byte instead of four. The mask is uint8, 0 or 1, and
not bool: PyTorch neither compares into bool nor converts it by vector instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16  # values of 16 random bits


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Set elements of x to zero with a probability, and scale the others so that the mean stays.
    Returns x itself outside of training.

    The draws are those of PyTorch's generator of the device. On a CPU the probability is rounded to
    a multiple of 2^-16.
    """
    if not training or not probability:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)  # one kernel
    return masked(x, *kept_elements(x.shape, probability))


def kept_elements(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Draw which elements are kept, on the CPU: uint8 in that shape, 1 for those that are. Returns
    them, and what those that are kept have to be multiplied by. At most all but 2^-16 of them are
    dropped."""
    below, count = min(round(probability * _LEVELS), _LEVELS - 1), math.prod(shape)
    # Four elements to a number of 64 bits.
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count].ge_(below - _LEVELS // 2)
    return kept.to(torch.uint8).view(*shape), _LEVELS / (_LEVELS - below)


def masked(x: Tensor, kept: Tensor, scale: float = 1.0) -> Tensor:
    """Return x * kept * scale. kept: uint8, 0 or 1, of x's shape."""
    result: Tensor = _Masked.apply(x, kept, scale)  # type: ignore[no-untyped-call]
    return result


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _multiplied(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _multiplied(gradient, kept, ctx.scale), None, None


def _multiplied(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    product = kept.to(x.dtype).mul_(x)
    return product if scale == 1 else product.mul_(scale)
