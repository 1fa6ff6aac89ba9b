"""What fine-tuning does to a batch on its device: RandAugment and random erasing by kornia, mixup
and cutmix.

All of it draws from PyTorch's generators, which the run seeds for each micro batch by its index in
the data.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config.schema import AugmentationSection

_SHAPE = "forward_input_shape"  # the one parameter of kornia's that is not by image
_TOGETHER = 4  # so many neighbours share the operations that RandAugment draws


class Augmentation:
    """The augmentation of one run. Called with pixels (B, 3, H, W) in [0, 1] and labels (B,), it
    returns pixels of the same shape and a target (B, classes), each row a distribution."""

    def __init__(self, section: AugmentationSection, classes: int) -> None:
        self._section, self._classes = section, classes
        self._rand: Any = None
        self._erase: Any = None
        if section.randaugment:
            from kornia.augmentation.auto import RandAugment

            self._rand = RandAugment(section.operations, section.randaugment)
        if section.erasing:
            from kornia.augmentation import RandomErasing

            self._erase = RandomErasing(
                scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), p=section.erasing
            )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # kornia draws the operations from Python's generator
        random.seed(int(torch.randint(2**31, (1,))))
        if self._rand is not None:
            images = self._distorted(images)
        if self._erase is not None:
            images = self._erase(images)
        target = F.one_hot(labels, self._classes).to(images.dtype)
        return mixed(images, target, self._section.mixup, self._section.cutmix)

    def _distorted(self, images: Tensor) -> Tensor:
        device = images.device
        if torch.are_deterministic_algorithms_enabled():
            # kornia's `equalize` makes a running sum, which CUDA makes in no fixed order.
            images = images.cpu()
        groups = torch.split(torch.arange(len(images)), _TOGETHER)
        drawn = [self._rand.forward_parameters((len(g), *images.shape[1:])) for g in groups]
        for operations in zip(*drawn, strict=True):
            images = self._applied(operations, groups, images)
        return images.clamp(0, 1).to(device)

    def _applied(
        self, operations: Sequence[Any], groups: Sequence[Tensor], images: Tensor
    ) -> Tensor:
        """Apply to each group of images its operation. Groups that drew the same one go together:
        the calls, and what they cost, do not grow with the batch."""
        drew: dict[str, list[int]] = {}
        for number, operation in enumerate(operations):
            drew.setdefault(operation.name, []).append(number)
        distorted = torch.empty_like(images)
        for numbers in drew.values():
            rows = torch.cat([groups[number] for number in numbers]).to(images.device)
            some = images[rows]
            together = _together([operations[number] for number in numbers], some.shape)
            distorted[rows] = self._rand.transform_inputs(some, params=[together])
        return distorted


def _together(operations: Sequence[Any], shape: Sequence[int]) -> Any:
    """One application of an operation that has the parameters of several, as kornia draws them:
    (name, [(name within, parameters by name)]), one row an image. shape: of all images."""
    first = operations[0]
    within, parameters = first.data[0].name, first.data[0].data
    rows = {
        name: torch.cat([operation.data[0].data[name] for operation in operations])
        for name in parameters
        if name != _SHAPE
    }
    return type(first)(first.name, [type(first)(within, {**rows, _SHAPE: torch.tensor(shape)})])


def mixed(images: Tensor, target: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix a batch with itself in reverse order: by mixup or by cutmix, with equal chances where
    both are wanted.

    images: (B, 3, H, W). target: (B, classes). mixup, cutmix: the alpha of the Beta distribution of
    the share that stays (arXiv 1710.09412, 1905.04899); 0 for none.
    """
    if not mixup and not cutmix:
        return images, target
    cut = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if cut else mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if cut:
        height, width = images.shape[-2:]
        side = math.sqrt(1 - share)
        y, x = (int(torch.randint(n, (1,))) for n in (height, width))
        top, bottom = (min(max(y + int(s * height * side / 2), 0), height) for s in (-1, 1))
        left, right = (min(max(x + int(s * width * side / 2), 0), width) for s in (-1, 1))
        other = images.flip(0)
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(images.flip(0), images, share)
    return images, torch.lerp(target.flip(0), target, share)
