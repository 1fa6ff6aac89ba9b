"""Dropout that costs little on CPUs.

PyTorch draws there 53 random bits for each element, one number after the other: at the sizes of
Base that takes nearly as long as the products between which the dropout stands. Here 16 bits decide
about an element, and the mask is kept as one byte instead of four.
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
    result: Tensor = _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]
    return result


def kept_elements(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Draw which elements are kept, bool in that shape, on the CPU. Returns them, and what those
    that are kept have to be multiplied by."""
    below, count = round(probability * _LEVELS), math.prod(shape)
    # Four elements to a number of 64 bits.
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count].view(*shape) >= below - _LEVELS // 2
    return kept, _LEVELS / (_LEVELS - below)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept, ctx.scale = kept_elements(x.shape, probability)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None
