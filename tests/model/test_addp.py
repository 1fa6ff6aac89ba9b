from __future__ import annotations

import pytest
import torch

from model.addp import ADDP
from model.config import SIZES, Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import DenoisingMasks, denoising_masks, mage_masks
from model.predictor import TokenPredictor
from model.transformer import smoothed_cross_entropy
from model.vq import VQTokenizer

TINY = TransformerConfig(size="tiny")  # type: ignore[call-arg]


@pytest.mark.parametrize(("image", "patch", "codes"), [(16, 4, 16), (24, 8, 5), (16, 2, 300)])
def test_any_geometry(image: int, patch: int, codes: int) -> None:
    geometry = Geometry(image_size=image, patch_size=patch, codebook_size=codes)
    network = ADDP(geometry, TINY)
    length = geometry.tokens
    masks = denoising_masks(0, 0, 0, 2, length)
    ids = torch.randint(codes, (2, length))
    target = torch.rand(2, length, codes).softmax(-1)
    loss = network(
        torch.rand(2, 3, image, image),
        ids,
        masks.mask_t,
        target,
        0.1,
        visible_count=length - masks.masked,
    )
    loss.backward()
    assert network.logits(torch.rand(2, 3, image, image), ids, masks.mask_t).shape == (
        2,
        length,
        codes + 1001,
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_masked_tokens_and_their_pixels_are_hidden_from_the_decoder() -> None:
    geometry = Geometry(image_size=16, patch_size=4, codebook_size=16)
    network = ADDP(geometry, TINY).eval()
    mask = torch.arange(16).expand(1, -1) % 3 > 0
    features, ids = torch.randn(1, 17, 32), torch.randint(16, (1, 16))
    hidden = torch.cat([torch.ones(1, 1, dtype=torch.bool), mask], 1)
    other_features = torch.where(hidden.unsqueeze(-1), torch.randn(1, 17, 32), features)
    other_ids = torch.where(mask, (ids + 3) % 16, ids)
    torch.testing.assert_close(
        network.decode(features, ids, mask), network.decode(other_features, other_ids, mask)
    )
    assert not torch.allclose(
        network.decode(features, ids, mask), network.decode(features, (ids + 3) % 16, mask)
    )


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 1.0])])
def test_the_loss_is_that_of_all_logits(weights: torch.Tensor | None) -> None:
    """Training makes logits for masked positions only, and evaluation for all."""
    torch.manual_seed(0)
    geometry = Geometry(image_size=16, patch_size=4, codebook_size=16)
    network, predictor = ADDP(geometry, TINY).eval(), TokenPredictor(geometry, TINY).eval()
    ids, images, target = (
        torch.randint(16, (3, 16)),
        torch.rand(3, 3, 16, 16),
        torch.rand(3, 16, 16),
    )
    mask = denoising_masks(0, 3, 0, 3, 16).mask_t
    expected = smoothed_cross_entropy(network.logits(images, ids, mask), target, mask, 0.1, weights)
    loss = network(images, ids, mask, target, 0.1, weights=weights)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    masks = mage_masks(0, 3, 0, 3, 16)
    logits = predictor.logits(ids, masks.mask, masks.kept)
    expected = smoothed_cross_entropy(logits, ids, masks.mask, 0.1, weights)
    for count in (None, masks.masked):
        loss = predictor(ids, masks.mask, masks.kept, 0.1, weights, masked_count=count)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_smoothed_cross_entropy_equals_torch() -> None:
    torch.manual_seed(0)
    logits, ids, mask = torch.randn(2, 8, 20), torch.randint(20, (2, 8)), torch.rand(2, 8) < 0.5
    expected = torch.nn.functional.cross_entropy(logits[mask], ids[mask], label_smoothing=0.1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, ids, mask, 0.1), expected)
    soft = torch.nn.functional.one_hot(ids, 20).float()[..., :20]
    torch.testing.assert_close(smoothed_cross_entropy(logits, soft, mask, 0.1), expected)


def test_frozen_networks_stay_frozen(tokenizer: VQTokenizer) -> None:
    geometry = Geometry.of(tokenizer.config)
    frozen = FrozenNetworks(tokenizer, TokenPredictor(geometry, TINY))
    frozen.train()
    assert not any(m.training for m in frozen.modules())
    ids = torch.randint(16, (2, 16))
    masks = denoising_masks(0, 0, 0, 2, 16)
    first, second = frozen(ids, masks), frozen(ids, masks)
    assert torch.equal(first.x_t, second.x_t) and not first.x_t.requires_grad  # dropout is off
    assert not any(p.requires_grad for p in frozen.parameters())


def test_nothing_unreliable_is_the_reconstruction(tokenizer: VQTokenizer) -> None:
    frozen = FrozenNetworks(tokenizer, TokenPredictor(Geometry.of(tokenizer.config), TINY))
    ids, nothing = torch.randint(16, (2, 16)), torch.zeros(2, 16, dtype=torch.bool)
    x_t = frozen(ids, DenoisingMasks(nothing, nothing, 0)).x_t
    torch.testing.assert_close(x_t, tokenizer.decode(tokenizer.embed(ids)))


@pytest.mark.parametrize(("size", "millions"), [("base", 86), ("large", 303)])
def test_published_sizes(size: str, millions: int) -> None:
    """The encoders are ViT-B/16 and ViT-L/16."""
    with torch.device("meta"):
        network = ADDP(Geometry(), TransformerConfig(size=size))  # type: ignore[call-arg]
    own = ("blocks.", "norm.", "patch_embed.", "cls_token", "pos_embed")
    count = sum(p.numel() for name, p in network.named_parameters() if name.startswith(own))
    assert count / 1e6 == pytest.approx(millions, abs=1)
    assert network.config.dropout == 0.1 and network.geometry.vocabulary == 2025
    assert set(SIZES["TransformerConfig"]) >= {"base", "large", "demo", "tiny"}


def test_published_tokenizer() -> None:
    with torch.device("meta"):
        network = VQTokenizer(TokenizerConfig())
    encoder, decoder = (
        sum(p.numel() for p in m.parameters()) / 1e6 for m in (network.encoder, network.decoder)
    )
    assert encoder == pytest.approx(24, abs=1) and decoder == pytest.approx(30, abs=1)
    assert network.config.stride == 16 and network.config.tokens == 256
