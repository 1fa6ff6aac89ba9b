"""Dropout that costs little on CPUs.

PyTorch draws there 53 random bits for each element, one number after the other: at the sizes of
Base that takes nearly as long as the products between which the dropout stands. Here 16 bits decide
about an element. They come from NumPy's SFC64, which takes half the time of PyTorch's Mersenne
Twister. The mask is kept as one byte instead of four: int8, all ones or all zeros in binary, which
are widened to those of an element and cut the others out bit by bit. A product of bfloat16 would
take four times as long, since it goes through float32; and PyTorch neither compares into bool nor
converts it by vector instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16  # values of 16 random bits
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Set elements of x to zero with a probability, and scale the others so that the mean stays.
    Returns x itself outside of training.

    PyTorch's generator of the device says what is drawn; that of the CPU gives one seed for each
    call. On a CPU the probability is rounded to a multiple of 2^-16.
    """
    if not training or not probability:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)  # one kernel
    return masked(x, *kept_elements(x.shape, probability))


def kept_elements(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """Draw which elements are kept, on the CPU: int8 in that shape, -1 for those that are, and 0.
    Returns them, and what those that are kept have to be multiplied by. At most all but 2^-16 of
    them are dropped."""
    below, count = min(round(probability * _LEVELS), _LEVELS - 1), math.prod(shape)
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    # Four elements to a number of 64 bits.
    draws = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
    kept = draws[:count].ge_(below - _LEVELS // 2).neg_()
    return kept.to(torch.int8).view(*shape), _LEVELS / (_LEVELS - below)


def masked(x: Tensor, kept: Tensor, scale: float = 1.0) -> Tensor:
    """Return x * scale where `kept`, of x's shape, is -1, and 0 where it is 0 (int8)."""
    result: Tensor = _Masked.apply(x, kept, scale)  # type: ignore[no-untyped-call]
    return result


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _cut_out(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _cut_out(gradient, kept, ctx.scale), None, None


def _cut_out(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    bits = _BITS[x.itemsize]
    result = kept.to(bits).bitwise_and_(x.view(bits)).view(x.dtype)
    return result if scale == 1 else result.mul_(scale)
