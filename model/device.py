"""The device that a user names, host memory that a GPU copies from, and where an operation is
computed whose order CUDA does not fix."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.documents import show
from model.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """Return the device of this name after making a tensor on it. Raises ConfigError for a name
    that is none, and for a device that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"--device {show(name)} is no device; name cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    try:
        torch.ones(1, device=device).sum().item()
    # Which error it is depends on how torch was built.
    except (RuntimeError, AssertionError, ImportError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise ConfigError(f"--device {name} cannot be used on this machine: {first}") from error
    return device


def staging(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return memory for bytes that go to this process's device. Where that is a GPU the memory is
    pinned: a copy with `non_blocking` does not make the host wait, and PyTorch uses the memory anew
    only after that copy."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()


def staged(tensor: Tensor) -> Tensor:
    """Return a tensor of the host in memory as `staging` gives it."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def ordered(x: Tensor) -> Tensor:
    """Return a tensor where an operation can be computed whose gradients CUDA adds up in any order:
    on the CPU if kernels must be deterministic, else where it is."""
    return x.cpu() if x.is_cuda and torch.are_deterministic_algorithms_enabled() else x
