"""BatchNorm over the images of all ranks, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.errors import ConfigError


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank's loss depends on it, so that gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class RankBatchNorm(nn.BatchNorm2d):
    """BatchNorm of maps. In training, the mean and the variance are those of the micro batches of
    all ranks together, in float32, as with mmsegmentation's SyncBN; PyTorch's own `SyncBatchNorm`
    does not run on CPUs. So its running statistics are the same on all ranks.

    Raises ConfigError if a channel has a single value in training, which has no variance.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        values = x.numel() // x.shape[1] * ranks
        if not self.training or x.is_meta:
            return super().forward(x)
        if values < 2:
            raise ConfigError(
                "a segmenter's BatchNorm has one value for each image in places, and one image has "
                "no variance: set batch.micro = 2 or more, or take more ranks"
            )
        if ranks == 1:
            return super().forward(x)
        y = x.float()
        mean = _total(y.sum((0, 2, 3))) / values
        centred = y - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / values
        with torch.no_grad():
            self._follow(mean, variance * (values / (values - 1)))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics follow those of a batch."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def _total(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def over_ranks(module: nn.Module) -> nn.Module:
    """Replace each fresh `nn.BatchNorm2d` within a module by a `RankBatchNorm`, and return it."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, RankBatchNorm(child.num_features))
    return module
