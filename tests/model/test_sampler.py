from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.addp import ADDP
from model.config import Geometry, TransformerConfig
from model.errors import ConfigError
from model.predictor import TokenPredictor
from model.sampler import Advisers, Given, generate, sample_ids
from model.sampling.guidance import fully_masked_logits, guided
from model.sampling.schedules import mask_length, mends, noise_scale
from model.sampling_options import SAMPLERS, SamplingOptions
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
    cold = torch.bincount(sample_ids(logits, u[None], temperature=0.5)[0], minlength=4)
    assert cold.tolist() == [22, 782, 0, 196]  # of probabilities in the ratio 0.01 : 0.36 : 0.09


# Each strategy alone, and what may meet in one sampler.
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "halton": {"order": "halton"},
    "random": {"order": "random"},
    "schedules": {"top_p": 0.9, "top_p_end": 0.6, "token_temperature": 1.2},
    "guided": {"guidance_weight": 2.0},
    "by another network": {"guidance_weight": 2.0, "guide": Path("another")},
    "mended": {"remask_steps": 3, "remask_share": 0.5},
    "mended by the critic": {"remask_steps": 3, "remask_share": 0.5, "critic": "predictor"},
    "all": {
        "order": "halton",
        "guidance_weight": 2.0,
        "guide": Path("another"),
        "top_p_end": 0.6,
        "remask_steps": 3,
        "critic": "predictor",
    },
}
STEPS = 8


@pytest.fixture
def advisers(tokenizer: VQTokenizer) -> Advisers:
    torch.manual_seed(4)
    geometry, sizes = Geometry.of(tokenizer.config), TransformerConfig(size="tiny")  # type: ignore[call-arg]
    return Advisers(ADDP(geometry, sizes).eval(), TokenPredictor(geometry, sizes).eval())


@pytest.fixture
def sampled(network: ADDP, tokenizer: VQTokenizer, advisers: Advisers) -> Callable[..., Any]:
    """Return a function that generates, and returns all states."""

    def states(options: dict[str, Any], start: int = 10, count: int = 4, **more: Any) -> Any:
        sampling = SamplingOptions(steps=STEPS, **options)
        which = {"seed": 3, "start": start, "count": count, "sampling": sampling}
        return list(generate(network, tokenizer, **which, advisers=advisers, **more))

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
    """Only steps that mend take known tokens back, as many as asked for, and none that was
    given."""
    sampling = SamplingOptions(steps=STEPS, **SETTINGS[name])
    images, ids = torch.zeros(4, 3, 16, 16), torch.arange(16).expand(4, -1)
    mask = (torch.arange(16) >= kept).expand(4, -1)
    given = Given(images, ids, mask)
    before, changed = given, False
    for step, state in enumerate(sampled(SETTINGS[name], given=given)):
        masked = mask_length(sampling, step, 16 - kept)
        assert (state.mask.sum(1) == masked).all()
        back = state.mask & ~before.mask
        known = 16 - kept - int(before.mask[0].sum())
        asked = int(sampling.remask_share * known) if mends(sampling, step) else 0
        assert (back.sum(1) == asked).all() and not (back & ~mask).any()
        stays = ~before.mask & ~back
        assert torch.equal(state.ids[stays], before.ids[stays])
        changed |= asked > 0
        before = state
    assert torch.equal(state.ids[~mask], ids[~mask]) and state.image.isfinite().all()
    assert changed == bool(sampling.remask_steps)


def test_guidance_of_weight_0_is_no_guidance(sampled: Callable[..., Any]) -> None:
    plain = sampled({})
    for options in ({"guidance_weight": 0.0}, {"guidance_weight": 0.0, "guide": Path("another")}):
        for ours, theirs in zip(sampled(options), plain, strict=True):
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


def test_a_missing_network_is_named(network: ADDP, tokenizer: VQTokenizer) -> None:
    which = {"seed": 0, "start": 0, "count": 1}
    for name, word in (("by another network", "guide"), ("mended by the critic", "predictor")):
        sampling = SamplingOptions(steps=STEPS, **SETTINGS[name])
        with pytest.raises(ConfigError, match=word):
            next(generate(network, tokenizer, **which, sampling=sampling))


def test_a_named_sampler_sets_what_is_not_given() -> None:
    assert SamplingOptions(sampler="halton").order == "halton"
    assert SamplingOptions(sampler="halton", order="confidence").order == "confidence"
    assert "sampler" not in SamplingOptions(sampler="halton").model_dump()
    for name, options in SAMPLERS.items():
        assert SamplingOptions(sampler=name) == SamplingOptions(sampler=name, **options)
    clear = SamplingOptions(top_p=1.0).or_else("clear")  # given, if only its default
    assert (clear.class_guidance, clear.top_p) == (2.0, 1.0)
    assert SamplingOptions(sampler="published").or_else("clear") == SamplingOptions()
    assert SamplingOptions().or_else("clear") == SamplingOptions(sampler="clear")
    assert SamplingOptions(steps=20, remask_steps=5, critic="predictor").passes == 25
    assert SamplingOptions(steps=20, guidance_weight=1, guide=Path("another")).passes == 40
