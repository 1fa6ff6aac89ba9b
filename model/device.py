"""The device that a user names."""

from __future__ import annotations

import torch

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
