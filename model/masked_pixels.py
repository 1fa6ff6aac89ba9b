"""Masked autoencoding of pixels (MAE, arXiv 2111.06377) with the network of ADDP: what ADDP's
pre-training is compared with.

    images --kept patches--> encoder --> features (B, 1 + N, D)
                                            |
        class slot, kept    feature    + its position
        masked              mask token + its position   (another table)
                                            |
                                  decoder --> pixels of the masked patches

Encoder and decoder are ADDP's, by their sizes and their code. Its token embeddings and its output
layer, which belong to tokens, are not trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.addp import ADDP
from model.config import MaskedPixelsConfig
from model.transformer import gather_positions

_EPSILON = 1e-6  # added to the variance of a patch's pixels, as in MAE


class MaskedPixels(nn.Module):
    """Trains a network to give back the pixels of patches that its encoder does not see."""

    def __init__(self, network: ADDP, config: MaskedPixelsConfig) -> None:
        super().__init__()
        self.network, self.normalised = network, config.normalised
        self.to_pixels = nn.Linear(network.config.dim, 3 * network.geometry.patch_size**2)
        nn.init.xavier_uniform_(self.to_pixels.weight)
        nn.init.zeros_(self.to_pixels.bias)
        for of_tokens in (network.token_emb, network.mlm_layer):
            of_tokens.requires_grad_(False)
        network.decoder_pos_token_embed.requires_grad_(False)

    def forward(self, images: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        """Return the mean squared error of the masked patches' pixels, a scalar.

        images: (B, 3, H, W) in [0, 1]. kept: (B, N) int64, the patches that the encoder sees.
        masked: (B, L - N) int64, the others.
        """
        network = self.network
        features = network.decoder_embed(network.encode(images, kept))
        # The class slot stands first.
        seen = F.pad(kept + 1, (1, 0)).unsqueeze(-1).expand_as(features)
        table = network.decoder_pos_embed_learned.expand(len(images), -1, -1)
        hidden = network.mask_token + network.decoder_pos_mask_embed
        x = hidden.expand_as(table).to(features.dtype)
        x = x.scatter(1, seen, features + table.gather(1, seen))
        for block in network.decoder_blocks:
            x = block(x)
        x = network.decoder_norm(gather_positions(x[:, 1:], masked))
        target = gather_positions(self.target(images), masked)
        return F.mse_loss(self.to_pixels(x).float(), target)

    def target(self, images: Tensor) -> Tensor:
        """Return the pixels of all patches of images (B, 3, H, W), in raster order: float32 (B, L,
        3 * patch * patch). With `normalised`, each patch has mean 0 and variance 1."""
        network, patch = self.network, self.network.geometry.patch_size
        pixels = (images.float() - network.mean.float()) / network.std.float()
        pixels = F.unfold(pixels, patch, stride=patch).transpose(1, 2)
        if not self.normalised:
            return pixels
        variance, mean = torch.var_mean(pixels, -1, keepdim=True)
        return (pixels - mean) / (variance + _EPSILON).sqrt()
