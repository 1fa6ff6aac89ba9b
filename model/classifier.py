"""Recognition (ADDP section 4.2, MAE appendix A): the encoder with mean pooling and a head.

Fine-tuned, its names are timm's `vit_base_patch16` with `global_pool="avg"`.
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
    """BatchNorm without weights, whose running statistics are averaged over ranks, so that they
    stay equal."""

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
    """finetune: blocks -> mean of the patch tokens -> LayerNorm -> linear; everything is trained,
    and `tokenizer_norm` is left out as in the reference, or kept. linear: the pre-trained encoder,
    frozen and in eval mode -> mean of the patch tokens -> BatchNorm without weights -> linear."""

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
        super().train(mode)
        if self.config.method == "linear":
            for part in (self.blocks, self.norm, self.tokenizer_norm):
                part.eval()
            self.dropout = 0.0
        return self

    def take(self, pretrained: Encoder) -> None:
        """Start from a pre-trained encoder's weights. Raises ConfigError where the sizes differ."""
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
        """Images (B, 3, H, W) in [0, 1] -> (B, classes)."""
        x: Tensor = self.head(self.fc_norm(self.encode(images)[:, 1:].mean(1)))
        return x

    def forward(self, images: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy, a scalar. target: (B, classes), probabilities; smoothing: of the
        target."""
        return F.cross_entropy(self.logits(images).float(), target, label_smoothing=smoothing)
