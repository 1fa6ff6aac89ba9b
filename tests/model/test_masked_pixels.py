"""MAE's loss on ADDP's network: what is masked is not seen, and what is seen is not asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.addp import ADDP
from model.config import Geometry, MaskedPixelsConfig, TokenizerConfig, TransformerConfig
from model.masked_pixels import MaskedPixels

SIDE = 16  # of the tiny networks' images


def made(**options: bool) -> tuple[MaskedPixels, Tensor, Tensor]:
    """The training network, images, and an order of the patches."""
    torch.manual_seed(0)
    geometry = Geometry.of(TokenizerConfig(size="tiny"))  # type: ignore[call-arg]
    sizes = TransformerConfig(size="tiny")  # type: ignore[call-arg]
    network = MaskedPixels(ADDP(geometry, sizes), MaskedPixelsConfig(**options)).eval()
    return network, torch.rand(3, 3, SIDE, SIDE), torch.rand(3, geometry.tokens).argsort(1)


@pytest.mark.parametrize("normalised", [True, False])
@torch.no_grad()
def test_the_loss_compares_masked_patches_with_what_is_seen_of_the_others(normalised: bool) -> None:
    network, images, order = made(normalised=normalised)
    half = order.shape[1] // 2
    masked, kept = order[:, :half], order[:, half:]
    found: list[Tensor] = []
    network.to_pixels.register_forward_hook(lambda _, __, pixels: found.append(pixels))
    loss = network(images, kept, masked)

    rows = torch.arange(len(images))[:, None]
    target = network.target(images)[rows, masked]
    torch.testing.assert_close(loss, (found[0] - target).square().mean())
    if normalised:
        assert target.mean(-1).abs().max() < 1e-5
        assert (target.var(-1) - 1).abs().max() < 0.01

    # Other pixels in a masked patch change no prediction; the order of patches changes nothing.
    patch, grid = network.network.geometry.patch_size, network.network.geometry.grid
    other = images.clone()
    for image, place in zip(other, masked[:, 0].tolist(), strict=True):
        top, left = place // grid * patch, place % grid * patch
        image[:, top : top + patch, left : left + patch] = 0.25
    network(other, kept.flip(1), masked)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    assert network(other, kept, masked) != loss


def test_what_belongs_to_tokens_is_left_alone_and_all_else_learns() -> None:
    network, images, order = made()
    network(images, order[:, 8:], order[:, :8]).backward()
    still = {name for name, p in network.named_parameters() if p.grad is None}
    assert still == {
        name
        for name, _ in network.named_parameters()
        if any(part in name for part in ("token_emb", "mlm_layer", "decoder_pos_token_embed"))
    }
