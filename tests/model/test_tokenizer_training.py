from __future__ import annotations

import pytest
import torch

from model.config import TokenizerConfig, TokenizerLossConfig
from model.tokenizer_training import TokenizerTraining
from model.vq import VQTokenizer

SIZES = {
    "image_size": 16,
    "channels": 32,
    "channel_multipliers": (1, 1, 1),
    "residual_blocks": 1,
    "code_dim": 8,
}


def blobs(count: int, seed: int) -> torch.Tensor:
    """Make white images with one coloured square each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 16, 16)
    for image in images:
        x, y = torch.randint(0, 8, (2,), generator=generator).tolist()
        image[:, y : y + 8, x : x + 8] = torch.rand(3, 1, 1, generator=generator)
    return images


def run(steps: int, **options: object) -> tuple[TokenizerTraining, list[float]]:
    torch.manual_seed(0)
    module = TokenizerTraining(
        VQTokenizer(TokenizerConfig(**SIZES, codebook_size=32)), TokenizerLossConfig(**options), 0
    )
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 2e-3)
    losses = []
    for step in range(steps):
        loss = module(blobs(16, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return module, losses


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_it_learns_and_uses_its_codes(codebook: str, reconstruction: str) -> None:
    module, losses = run(60, codebook=codebook, reconstruction=reconstruction)
    assert losses[-1] < 0.5 * losses[0]
    ids = module.tokenizer.eval().encode(blobs(64, 999))
    assert len(ids.unique()) >= 12
    assert module.tokenizer.quantize.embedding.weight.requires_grad == (codebook == "gradient")


def test_dead_codes_come_back() -> None:
    module, _ = run(5)
    module.tokenizer.codebook.data[8:] = 1e6
    module.usage[8:] = 0
    module.vector_sum[8:] = 0
    module.batches.fill_(module.config.revive_every)
    module(blobs(16, 50))
    assert (module.tokenizer.codebook.abs() < 1e5).all()


def test_revival_does_not_split_what_is_well_represented() -> None:
    """The plain background has a code already: revived codes go to what is badly represented."""
    module, _ = run(1)
    z = torch.zeros(1, 8, 4, 4)
    z[0, :, 0, 0] = 3.0  # one odd vector among fifteen equal ones
    module.tokenizer.codebook.data[:] = 100.0
    module.tokenizer.codebook.data[0] = 0.0
    module.usage[:] = 0
    module.usage[0] = 16.0
    module._revive(z)
    assert torch.equal(module.tokenizer.codebook[1:], torch.full((31, 8), 3.0))


def test_adversarial_players_train_apart() -> None:
    """The verdict reaches the decoder, the reconstruction does not train against the
    discriminator's weights."""
    torch.manual_seed(0)
    module = TokenizerTraining(
        VQTokenizer(TokenizerConfig(**SIZES, codebook_size=8)),
        TokenizerLossConfig(adversarial=0.5),
        0,
    )
    module.batches.fill_(7)
    images, restored = blobs(2, 0), torch.rand(2, 3, 16, 16, requires_grad=True)
    module._adversarial(restored, images).backward()
    assert module.discriminator is not None
    ours = [p.grad.clone() for p in module.discriminator.parameters()]
    module.discriminator.zero_grad()
    real, fake = module.discriminator(images), module.discriminator(restored.detach())
    (0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())).backward()
    for a, b in zip(ours, (p.grad for p in module.discriminator.parameters()), strict=True):
        torch.testing.assert_close(a, b)
    assert restored.grad is not None and restored.grad.abs().sum() > 0
    module.config = TokenizerLossConfig(adversarial=0.5, adversarial_start=100)
    restored.grad = None
    module._adversarial(restored, images).backward()
    assert restored.grad is None or restored.grad.abs().sum() == 0


def test_perceptual_term() -> None:
    module, losses = run(3, perceptual=0.1)
    assert module.perceptual is not None and not list(module.perceptual.parameters())
    images = blobs(4, 0)
    near, far = (
        module.perceptual((images + s * torch.randn_like(images)).clamp(0, 1), images)
        for s in (0.02, 0.5)
    )
    assert 0 < near < far and module.perceptual(images, images) == 0
    assert all(loss == loss for loss in losses)
