from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.sampler import Given, generate, least_confident, sample_ids
from model.sampling.guidance import fully_masked_logits, guided
from model.sampling.schedules import mask_length
from model.sampling_options import SAMPLERS, SamplingOptions
from model.vq import VQTokenizer


@pytest.fixture
def network(tokenizer: VQTokenizer) -> ADDP:
    torch.manual_seed(1)
    return ADDP(Geometry.of(tokenizer.config), TransformerConfig(size="tiny")).eval()  # type: ignore[call-arg]


def test_the_least_confident_of_the_masked_stay_masked() -> None:
    logits = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
    # The last position is known, and least confident.
    mask = torch.tensor([[True, True, True, False]])
    ids, gumbel = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    chosen = least_confident(logits, ids, mask, gumbel=gumbel, scale=0.0, count=2)
    assert chosen.tolist() == [[False, True, True, False]]


def test_ids_are_drawn_from_the_distribution() -> None:
    p = torch.tensor([0.1, 0.6, 0.0, 0.3])
    u = (torch.arange(1000) + 0.5) / 1000
    logits = p.log().expand(1, 1000, 4)
    counts = torch.bincount(sample_ids(logits, u[None])[0], minlength=4)
    assert counts.tolist() == [100, 600, 0, 300]
    nucleus = sample_ids(logits, u[None], top_p=0.7)[0]
    assert set(nucleus.tolist()) == {1, 3}
    assert set(sample_ids(logits, u[None], top_p=0.5)[0].tolist()) == {1}


# Each option alone, and all together.
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "linear": {"schedule": "linear", "temperature": "constant"},
    "top-p": {"top_p": 0.9},
    "guided": {"guidance_weight": 2.0},
    "all": {"guidance_weight": 2.0, "top_p": 0.8, "choice_temperature": 2.0},
}
STEPS = 8


@pytest.fixture
def sampled(network: ADDP, tokenizer: VQTokenizer) -> Callable[..., Any]:
    """Return a function that generates, and returns all states."""

    def states(options: dict[str, Any], start: int = 10, count: int = 4, **more: Any) -> Any:
        sampling = SamplingOptions(steps=STEPS, **options)
        which = {"seed": 3, "start": start, "count": count, "sampling": sampling}
        return list(generate(network, tokenizer, **which, **more))

    return states


@pytest.mark.parametrize("name", SETTINGS)
def test_a_sample_is_a_function_of_its_index(name: str, sampled: Callable[..., Any]) -> None:
    states, (*_, alone) = sampled(SETTINGS[name]), sampled(SETTINGS[name], 12, 1)
    last = states[-1]
    assert torch.equal(alone.ids[0], last.ids[2])
    torch.testing.assert_close(alone.image[0], last.image[2], atol=1e-5, rtol=1e-4)
    assert len({tuple(row.tolist()) for row in last.ids}) == 4
    if name != "published":
        assert not torch.equal(last.ids, sampled({})[-1].ids)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kept", [0, 4])
def test_masks_shrink_as_scheduled_and_what_is_known_stays(
    name: str, kept: int, sampled: Callable[..., Any]
) -> None:
    sampling = SamplingOptions(steps=STEPS, **SETTINGS[name])
    images, ids = torch.zeros(4, 3, 16, 16), torch.arange(16).expand(4, -1)
    mask = (torch.arange(16) >= kept).expand(4, -1)
    before = given = Given(images, ids, mask)
    for step, state in enumerate(sampled(SETTINGS[name], given=given)):
        assert (state.mask.sum(1) == mask_length(sampling, step, 16 - kept)).all()
        assert not (state.mask & ~before.mask).any()
        assert torch.equal(state.ids[~before.mask], before.ids[~before.mask])
        before = state
    assert torch.equal(state.ids[~mask], ids[~mask]) and state.image.isfinite().all()


def test_guidance_of_weight_0_is_no_guidance(sampled: Callable[..., Any]) -> None:
    for ours, theirs in zip(sampled({"guidance_weight": 0.0}), sampled({}), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_guidance_leads_away_from_what_the_network_predicts_of_nothing(network: ADDP) -> None:
    nothing = fully_masked_logits(network)
    ids, mask = torch.randint(16, (2, 16)), torch.ones(2, 16, dtype=torch.bool)
    anything = network.logits(torch.rand(2, 3, 16, 16), ids, mask)[..., :16]
    torch.testing.assert_close(nothing.expand(2, -1, -1), anything, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guided(nothing, nothing * 0.5, 2.0), nothing * 2)


def test_a_completion_is_guided_as_generation_is(
    network: ADDP, tokenizer: VQTokenizer, sampled: Callable[..., Any]
) -> None:
    """From the tokens of a state, the steps that are left have the same l0."""
    options = {"guidance_weight": 2.0}
    given = Given(torch.rand(4, 3, 16, 16), torch.zeros(4, 16).long(), torch.arange(16) > 3)
    given = given._replace(mask=given.mask.expand(4, -1))
    assert not torch.equal(sampled(options, given=given)[0].ids, sampled({}, given=given)[0].ids)


def test_a_named_sampler_sets_what_is_not_given() -> None:
    assert SamplingOptions(sampler="guided").guidance_weight == 2
    assert SamplingOptions(sampler="guided", guidance_weight=0).guidance_weight == 0
    assert "sampler" not in SamplingOptions(sampler="guided").model_dump()
    for name, options in SAMPLERS.items():
        assert SamplingOptions(sampler=name) == SamplingOptions(sampler=name, **options)
    clear = SamplingOptions(top_p=1.0).or_else("clear")  # given, if only its default
    assert (clear.class_guidance, clear.top_p) == (2.0, 1.0)
    assert SamplingOptions(sampler="published").or_else("clear") == SamplingOptions()
    assert SamplingOptions().or_else("clear") == SamplingOptions(sampler="clear")
