"""Guidance by classes: l_u + w (l_c - l_u)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.addp import ADDP
from model.conditioning import labels_in_turn, labels_of
from model.config import ConditionalConfig, Geometry, TransformerConfig
from model.errors import ConfigError
from model.sampler import generate
from model.sampling.guidance import code_logits, fully_masked_logits, guided
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer

CLASSES = torch.tensor([2, 0, 1, 2])
TINY = TransformerConfig(size="tiny")  # type: ignore[call-arg]


@pytest.fixture
def network(tokenizer: VQTokenizer) -> ADDP:
    torch.manual_seed(1)
    sizes = ConditionalConfig(**TINY.model_dump(), classes=("a", "b", "c"))
    made = ADDP(Geometry.of(tokenizer.config), sizes).eval()
    made.token_emb.weight.data[16:] *= 20  # classes matter, as in a network that learned them
    return made


@pytest.fixture
def states(network: ADDP, tokenizer: VQTokenizer) -> Callable[..., Any]:
    """Return a function that generates, and returns all states."""

    def of(classes: Tensor | None = CLASSES, start: int = 10, **options: Any) -> Any:
        sampling = SamplingOptions(steps=6, **options)
        which = {"seed": 3, "start": start, "count": 4 if classes is None else len(classes)}
        return list(generate(network, tokenizer, **which, sampling=sampling, classes=classes))

    return of


def same(ours: Any, theirs: Any) -> bool:
    return all(
        torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_weight_0_is_the_unconditional_sampler(states: Callable[..., Any]) -> None:
    """Bit for bit, also with the other guidance."""
    for options in ({}, {"guidance_weight": 1.0}):
        unconditional = states(None, **options)
        assert same(states(class_guidance=0.0, **options), unconditional)
        assert not same(states(**options), unconditional)


def test_weight_1_is_the_conditional_prediction_and_others_lie_on_its_line(network: ADDP) -> None:
    """Passes of the decoder: one for weights 0 and 1."""
    torch.manual_seed(2)
    mask = torch.arange(16).expand(4, -1) < 9
    given = torch.rand(4, 3, 16, 16), torch.randint(16, (4, 16)), mask
    passes: list[Any] = []
    network.decoder_norm.register_forward_hook(lambda *_: passes.append(1))
    found, counts = {}, {}
    for weight in (0.0, 1.0, 3.0):
        passes.clear()
        found[weight] = code_logits(network, *given, 7, CLASSES, weight)
        counts[weight] = len(passes)
    assert counts == {0.0: 1, 1.0: 1, 3.0: 2}
    assert torch.equal(found[0.0], network.logits(*given, 7)[..., :16])
    assert torch.equal(found[1.0], network.logits(*given, 7, CLASSES)[..., :16])
    expected = found[0.0] + 3 * (found[1.0] - found[0.0])
    torch.testing.assert_close(found[3.0], expected)


@pytest.mark.parametrize(
    "options", [{}, {"class_guidance": 2.5}, {"class_guidance": 2.5, "guidance_weight": 1.0}]
)
def test_a_sample_is_a_function_of_its_index_and_class(
    options: dict[str, Any], states: Callable[..., Any]
) -> None:
    last = states(**options)[-1]
    assert torch.equal(states(CLASSES[2:3], 12, **options)[-1].ids[0], last.ids[2])
    assert not torch.equal(states((CLASSES + 1) % 3, **options)[-1].ids, last.ids)


def test_nothing_known_is_no_class_either(network: ADDP, states: Callable[..., Any]) -> None:
    """Guidance by the fully masked prediction leads towards the class, too: l0 is without it."""
    nothing = fully_masked_logits(network)
    first = states(guidance_weight=2.0)[0]
    mask = torch.ones(4, 16, dtype=torch.bool)
    given = torch.rand(4, 3, 16, 16), torch.zeros(4, 16).long(), mask
    told = network.logits(*given, 0, CLASSES)[..., :16]
    torch.testing.assert_close(first.logits, told, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first.logits[:1], nothing, atol=1e-3)


def test_bf16_logits_are_extrapolated_in_float32(network: ADDP) -> None:
    """bf16 would round what the weight has enlarged. Without guidance they stay as they are."""
    torch.manual_seed(2)
    logits, poorer = torch.randn(2, 1, 16, 16, dtype=torch.bfloat16)
    line = logits.float() + 3 * (logits.float() - poorer.float())
    assert torch.equal(guided(logits, poorer, 3.0), line)
    assert guided(logits, None, 3.0) is logits and guided(logits, poorer, 0.0) is logits
    network.bfloat16()
    given = torch.rand(4, 3, 16, 16).bfloat16(), torch.randint(16, (4, 16)), torch.ones(4, 16) > 0
    lu, lc, between = (code_logits(network, *given, 0, CLASSES, w) for w in (0.0, 1.0, 3.0))
    assert lu.dtype == lc.dtype == torch.bfloat16
    assert torch.equal(between, lu.float() + 3 * (lc.float() - lu.float()))


def test_classes_by_name_number_and_all() -> None:
    known = ("cat", "dog", "0")
    assert labels_of(known, ["dog", "cat"]) == [1, 0]
    assert labels_of(known, [2, "1", "0"]) == [2, 1, 2]  # a name counts before a number
    assert labels_of(known, "dog") == labels_of(known, 1) == [1]  # one alone
    assert labels_of(known, ["all"]) == labels_of(known, "all") == [0, 1, 2]
    assert labels_of(known, "none") == labels_of((), "none") == labels_of((), "all") == []
    with pytest.raises(ConfigError, match="none stands alone"):
        labels_of(known, ["cat", "none"])
    words = ("none", "cat", "all")  # both count before a class of that name, which has its number
    assert labels_of(words, "all") == [0, 1, 2] and labels_of(words, "none") == []
    assert labels_of(words, [2, "0"]) == [2, 0]
    for asked in ("bird", "3", -1, 3):
        with pytest.raises(
            ConfigError, match=r"knows no class .*; its classes are cat, dog, 0, or"
        ):
            labels_of(known, [asked])
    many = tuple(f"class {i}" for i in range(1000))
    with pytest.raises(ConfigError, match="class 19 and 980 more, or their numbers from 0 to 999"):
        labels_of(many, ["bird"])
    with pytest.raises(ConfigError, match=r"its classes are '\\x1b\[2Jcat', or"):  # escaped
        labels_of(("\x1b[2Jcat",), "bird")
    assert labels_in_turn([4, 2, 7], 2, 5).tolist() == [7, 4, 2, 7, 4]


def test_a_network_without_a_condition_is_asked(tokenizer: VQTokenizer) -> None:
    network = ADDP(Geometry.of(tokenizer.config), TINY).eval()
    options = {"seed": 0, "start": 0, "count": 4, "sampling": SamplingOptions(steps=2)}
    with pytest.raises(ConfigError, match="it was trained without a condition"):
        next(generate(network, tokenizer, **options, classes=CLASSES))
