"""Recognition (ADDP section 4.2, MAE appendix A): the encoder with mean pooling and a head.

A fine-tuned classifier has the names of timm's `vit_base_patch16` with `global_pool="avg"`.
"""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ClassifierConfig, Geometry
from model.encoder import Encoder
from model.errors import ConfigError
from model.transformer import initialise


class _FeatureNorm(nn.BatchNorm1d):
    """BatchNorm without weights. Its running statistics are averaged over ranks, so that they stay
    equal."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        if self.training and dist.is_initialized():
            for statistics in (self.running_mean, self.running_var):
                assert statistics is not None
                dist.all_reduce(statistics)
                statistics /= dist.get_world_size()
        return result


class Classifier(Encoder):
    """An encoder with a head, by the config's method.

    finetune: blocks -> mean of the patch features -> LayerNorm -> linear. Everything is trained,
    and `tokenizer_norm` is left out as in the reference, or kept. linear: the pre-trained encoder,
    frozen and in eval mode -> mean of the patch features -> BatchNorm without weights -> linear.
    Only the last linear layer is trained.
    """

    kind = "classifier"

    def __init__(self, geometry: Geometry, config: ClassifierConfig) -> None:
        linear = config.method == "linear"
        super().__init__(
            geometry, config.encoder, tokenizer_norm=linear or config.tokenizer_norm, norm=linear
        )
        self.config = config
        dim = config.encoder.dim
        self.fc_norm: nn.Module = _FeatureNorm(dim) if linear else nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, len(config.classes))
        initialise(self)
        nn.init.trunc_normal_(self.head.weight, std=0.01 if linear else 2e-5)
        nn.init.zeros_(self.head.bias)
        if linear:
            self.requires_grad_(False)
            self.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode; with a linear head, the encoder stays in eval mode."""
        super().train(mode)
        if self.config.method == "linear":
            for module in (self.blocks, self.norm, self.tokenizer_norm):
                module.eval()
            self.dropout = 0.0
        return self

    def take(self, pretrained: Encoder) -> None:
        """Take a pre-trained encoder's weights. Raises ConfigError if the sizes differ."""
        own = self.state_dict()
        given = {k: v for k, v in pretrained.state_dict().items() if k in own}
        wanted = [k for k in own if not k.startswith(("fc_norm.", "head."))]
        wrong = [k for k in wanted if k not in given or given[k].shape != own[k].shape]
        if wrong:
            raise ConfigError(
                "the pre-trained encoder does not fit classifier.sizes and tokenizer.sizes: "
                f"{len(wrong)} tensors differ, first: {wrong[0]}"
            )
        self.load_state_dict(own | {k: given[k] for k in wanted})

    def logits(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) in [0, 1]: logits (B, classes)."""
        x: Tensor = self.head(self.fc_norm(self.encode(images)[:, 1:].mean(1)))
        return x

    def forward(self, images: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Return the cross-entropy, a scalar. target: probabilities (B, classes). smoothing: of the
        target."""
        return F.cross_entropy(self.logits(images).float(), target, label_smoothing=smoothing)
