from __future__ import annotations

import itertools

import pytest
import torch

from model.conditioning import NOT_TOLD
from model.config import CLASS_SLOT_OFFSET, Geometry, TransformerConfig
from model.masking import mage_masks
from model.predictor import TokenPredictor

GEOMETRY = Geometry(image_size=16, patch_size=4, codebook_size=16)


@pytest.fixture
def predictor() -> TokenPredictor:
    torch.manual_seed(0)
    return TokenPredictor(GEOMETRY, TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]


def test_keeping_everything_changes_nothing(predictor: TokenPredictor) -> None:
    ids, mask = torch.randint(16, (2, 16)), torch.rand(2, 16) < 0.5
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(predictor.logits(ids, mask, everything), predictor.logits(ids, mask))


def test_only_visible_tokens_are_seen(predictor: TokenPredictor) -> None:
    masks = mage_masks(0, 0, 0, 2, 16)
    ids = torch.randint(16, (2, 16))
    other = torch.where(masks.mask, (ids + 5) % 16, ids)
    torch.testing.assert_close(
        predictor.logits(ids, masks.mask, masks.kept),
        predictor.logits(other, masks.mask, masks.kept),
    )
    changed = torch.where(masks.mask, ids, (ids + 5) % 16)
    assert not torch.allclose(
        predictor.logits(ids, masks.mask, masks.kept),
        predictor.logits(changed, masks.mask, masks.kept),
    )


def test_a_class_is_read_in_the_class_slot(predictor: TokenPredictor) -> None:
    """Each class differs from the others, also the one whose id means that none is told."""
    ids, mask = torch.randint(16, (1, 16)).expand(3, -1), torch.rand(1, 16).expand(3, -1) < 0.5
    untold = predictor.logits(ids, mask)
    assert torch.equal(predictor.logits(ids, mask, classes=torch.full((3,), NOT_TOLD)), untold)
    classes = torch.tensor([0, CLASS_SLOT_OFFSET, 999])
    told = predictor.logits(ids, mask, classes=classes)
    every = [untold[0], *told]
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(every, 2))


def test_it_learns(predictor: TokenPredictor) -> None:
    """A constant image is learned within a few steps."""
    ids = torch.arange(16).expand(8, -1)
    optimizer = torch.optim.Adam(predictor.train().parameters(), 1e-2)
    losses = []
    for step in range(150):
        masks = mage_masks(0, step, 0, 8, 16)
        loss = predictor(ids, masks.mask, masks.kept, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 5 and losses[-1] < 2


def test_word_embeddings_get_no_gradient_through_the_head(predictor: TokenPredictor) -> None:
    ids, mask = torch.zeros(1, 16, dtype=torch.int64), torch.ones(1, 16, dtype=torch.bool)
    predictor.logits(ids, mask).sum().backward()
    gradient = predictor.token_emb.word_embeddings.weight.grad
    assert gradient is not None
    touched = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [GEOMETRY.class_slot_id, GEOMETRY.mask_id]  # as inputs only
