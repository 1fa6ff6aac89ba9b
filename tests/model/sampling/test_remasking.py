from __future__ import annotations

import pytest
import torch

from model.config import Geometry, TransformerConfig
from model.predictor import TokenPredictor
from model.sampling.remasking import any_returned, doubted_returned
from model.vq import VQTokenizer


@pytest.fixture
def critic(tokenizer: VQTokenizer) -> TokenPredictor:
    torch.manual_seed(2)
    return TokenPredictor(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]


def test_candidates_return_and_no_others(critic: TokenPredictor) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, (3, 16), generator=generator)
    mask = torch.arange(16).expand(3, -1) < 8
    candidates = torch.arange(16).expand(3, -1) >= 10
    noise = torch.rand(3, 16, generator=generator)
    expected = torch.full((1, 16, 16), 1 / 16)
    for returned in (
        any_returned(candidates, noise, 3, expected),
        doubted_returned(critic, ids, mask, candidates, noise=noise, count=3),
    ):
        assert (returned.where.sum(1) == 3).all() and not (returned.where & ~candidates).any()


def test_the_critic_judges_tokens_that_it_does_not_see(critic: TokenPredictor) -> None:
    """It doubts the same positions whatever else hides there, and takes back the least likely."""
    ids = torch.randint(16, (1, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(16)[None] < 8
    candidates = ~mask
    noise = torch.zeros(1, 16)  # so the first candidates are judged
    returned = doubted_returned(critic, ids, mask, candidates, noise=noise, count=2)
    judged = torch.zeros_like(mask)
    judged[0, 8:12] = True
    p = critic.probabilities(ids, mask | judged)
    assert torch.equal(returned.expected, p)
    likely = p[0, torch.arange(8, 12), ids[0, 8:12]]
    least = 8 + likely.argsort()[:2]
    assert set(returned.where[0].nonzero().flatten().tolist()) == set(least.tolist())
