"""An encoder as the backbone of segmenters and detectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.config import Geometry
from model.dense.config import BackboneConfig
from model.dense.windows import GridAttention
from model.encoder import PixelTransformer
from model.transformer import LayerScale, blocks_of, initialise


class Backbone(PixelTransformer):
    """ADDP's encoder, or another ViT, as a source of maps.

    Pixels in [0, 1] enter as in fine-tuning: clamped, normalised by ImageNet's mean and deviation,
    and with the learned positions of the pre-trained grid added, which are interpolated (bicubic,
    corners not aligned) to the grid of the images in each forward pass, as in ViTDet. There is no
    norm after the blocks, as in MAE's segmentation and in ViTDet.

    In its plain form it is the encoder of the classifier: a class token attends with the patches.
    With `config.windows` it has ViTDet's form: the class token is left out (its parameters stay,
    with zero gradients), and blocks attend within windows, but for the global ones. Images may be
    of any size that is a multiple of the patch.

    Raises ConfigError if no attention backend works.
    """

    def __init__(self, geometry: Geometry, config: BackboneConfig) -> None:
        super().__init__(geometry, config.encoder, tokenizer_norm=config.tokenizer_norm)
        self.config = config
        c, windows = config.encoder, config.windows
        for index, block in enumerate(blocks_of(self)):
            if windows is not None:
                size = 0 if index in windows.global_blocks else windows.size
                side = size or windows.image_size // geometry.patch_size
                side = side if windows.relative_positions else 0
                block.attn = GridAttention(c.dim, c.heads, c.dropout, size=size, side=side)
            if config.layer_scale:
                block.ls1, block.ls2 = LayerScale(c.dim), LayerScale(c.dim)
        initialise(self)

    def forward(self, images: Tensor, at: Sequence[int]) -> list[Tensor]:
        """Return the maps after some blocks, each (B, D, H / patch, W / patch).

        images: (B, 3, H, W) in [0, 1], H and W multiples of the patch. at: the blocks, counted from
        0 as in publications; one may stand twice.
        """
        patch = self.geometry.patch_size
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        x, maps = self._embed(images), {}
        if self.config.windows is not None:
            x = x[:, 1:].reshape(len(x), *grid, -1)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in at:
                patches = x if x.dim() == 4 else x[:, 1:].reshape(len(x), *grid, -1)
                maps[index] = patches.permute(0, 3, 1, 2)
        return [maps[index] for index in at]
