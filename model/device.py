"""The device that a user names."""

from __future__ import annotations

import torch

from model.documents import show
from model.errors import ConfigError


def usable_device(name: str) -> torch.device:
    """By making a tensor there. Raises ConfigError for what is no device, or none that this machine
    has."""
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
    except (
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # which one depends on how torch was built
        first = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise ConfigError(f"--device {name} cannot be used on this machine: {first}") from error
    return device
