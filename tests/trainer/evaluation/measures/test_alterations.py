"""Copies that are turned, moved and recoloured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.evaluation.measures.alterations import SHIFT, altered


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_a_copy_depends_on_the_seed_and_its_number_alone(images: Tensor) -> None:
    whole = altered(images, seed=3)
    assert torch.equal(altered(images[4:], seed=3, start=4), whole[4:])
    assert not torch.equal(altered(images, seed=4), whole)
    assert whole.shape == images.shape and whole.min() >= 0 and whole.max() <= 1


def test_no_strength_changes_nothing(images: Tensor) -> None:
    torch.testing.assert_close(altered(images, 0, strength=0.0), images, rtol=0, atol=1e-4)


def test_a_plain_image_stays_plain_and_a_thing_stays_near() -> None:
    """The border goes on where the frame moves, and nothing moves further than it may."""
    plain = torch.full((8, 3, 40, 40), 0.5)
    assert (altered(plain, 0).amax((2, 3)) - altered(plain, 0).amin((2, 3))).max() < 1e-4
    dot = plain.clone()
    dot[:, :, 19:21, 19:21] = 1.0
    light = altered(dot, 0).mean(1)
    light = light - light.amin((1, 2), keepdim=True)
    places = torch.arange(40) + 0.5
    rows = (light.sum(2) * places).sum(1) / light.sum((1, 2))
    moved = (rows - 20).abs() / 40
    assert 0.01 < moved.max() <= 2**0.5 * SHIFT  # along the axes of the turned frame
