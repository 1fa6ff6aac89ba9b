"""Attention, in one function with two backends: xformers on CUDA when it is installed, PyTorch's SDPA otherwise.

The only file that touches xformers.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # SDPA wants heads before positions
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, p=dropout)


_BACKENDS: dict[str, AttentionFunction] = {"xformers": _xformers, "sdpa": _sdpa}


@cache
def backend_for(device_type: str) -> str:
    """Name of the backend used on a device type ("cuda", "cpu", ...). Logged once, at the first call."""
    # xformers has no CPU operator for attention.
    name = "xformers" if device_type == "cuda" and importlib.util.find_spec("xformers") else "sdpa"
    if device_type != "meta":
        log.info("attention backend on %s: %s", device_type, name)
    return name


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, backend: str | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head width)) v, no mask.

    q, k, v: (B, M, heads, head width), any floating dtype, on one device. Returns the shape of q.
    dropout: probability with which attention weights are dropped (0 in evaluation).
    backend: "xformers" or "sdpa"; chosen by the device when None.
    """
    name = backend or backend_for(q.device.type)
    if not q.is_meta and torch.is_autocast_enabled(
        q.device.type
    ):  # the residual stream is float32 there; the products need not be
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return _BACKENDS[name](q, k, v, dropout)
