from __future__ import annotations

from typing import Any

import pytest
import torch

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.sampler import generate, mask_length, noise_scale, remask, sample_ids
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer


@pytest.fixture
def network(tokenizer: VQTokenizer) -> ADDP:
    torch.manual_seed(1)
    return ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]


def test_mask_lengths_are_the_references(schedules: dict[str, Any]) -> None:
    expected = schedules["generation_masked_after_step"]
    assert [mask_length(SamplingOptions(steps=20), s, 256) for s in range(20)] == expected[
        "cosine_20"
    ]
    linear = [
        mask_length(SamplingOptions(steps=256, schedule="linear"), s, 256) for s in range(256)
    ]
    assert (
        linear[:10] == expected["linear_256_first10"]
        and linear[-3:] == expected["linear_256_last3"]
    )


def test_temperature() -> None:
    sampling = SamplingOptions(steps=4)
    assert noise_scale(sampling, 0) == 4.5 and noise_scale(sampling, 3) == 0
    assert noise_scale(SamplingOptions(steps=4, temperature="constant"), 3) == 6


def test_ids_are_drawn_from_the_distribution() -> None:
    p = torch.tensor([0.1, 0.6, 0.0, 0.3])
    u = (torch.arange(1000) + 0.5) / 1000
    logits = p.log().expand(1, 1000, 4)
    counts = torch.bincount(sample_ids(logits, u[None])[0], minlength=4)
    assert counts.tolist() == [100, 600, 0, 300]
    nucleus = sample_ids(logits, u[None], top_p=0.7)[0]
    assert set(nucleus.tolist()) == {1, 3}
    assert set(sample_ids(logits, u[None], top_p=0.5)[0].tolist()) == {1}


def test_remask_takes_the_least_confident_of_the_masked() -> None:
    logits = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
    # The last position is known, and least confident.
    mask = torch.tensor([[True, True, True, False]])
    ids, gumbel = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    chosen = remask(logits, ids, mask, gumbel=gumbel, scale=0.0, count=2)
    assert chosen.tolist() == [[False, True, True, False]]


def test_a_sample_is_a_function_of_its_index(network: ADDP, tokenizer: VQTokenizer) -> None:
    sampling = SamplingOptions(steps=5)
    *states, last = generate(network, tokenizer, seed=3, start=10, count=4, sampling=sampling)
    assert [int(s.mask[0].sum()) for s in (*states, last)] == [
        mask_length(sampling, s, 16) for s in range(5)
    ]
    for before, after in zip(states, [*states[1:], last], strict=True):
        assert torch.equal(before.ids[~before.mask], after.ids[~before.mask])  # what is known stays
        assert not (after.mask & ~before.mask).any()
    *_, alone = generate(network, tokenizer, seed=3, start=12, count=1, sampling=sampling)
    assert torch.equal(alone.ids[0], last.ids[2])
    torch.testing.assert_close(alone.image[0], last.image[2], atol=1e-5, rtol=1e-4)
    assert len({tuple(row.tolist()) for row in last.ids}) == 4
