from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.attention import attention
from model.dropout import dropout


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    probability=st.floats(0.001, 0.99),
    seed=st.integers(0, 2**31),
)
def test_elements_and_their_gradients_are_zero_or_scaled(
    shape: list[int], probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.rand(shape) + 1
    x.requires_grad_()
    y = dropout(x, probability)
    y.backward(torch.full_like(y, 3.0))
    kept = y != 0
    scale = 1 / (1 - round(probability * 2**16) / 2**16)
    torch.testing.assert_close(y, torch.where(kept, x * scale, 0.0))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(kept, 3 * scale, 0.0))


def test_a_probability_just_below_one() -> None:
    y = dropout(torch.ones(2**18), 1 - 2**-20)
    assert set(y.unique().tolist()) == {0.0, 2.0**16}


def test_the_mean_stays_and_draws_follow_the_generator() -> None:
    x = torch.ones(1000, 1003)
    torch.manual_seed(0)
    first, second = dropout(x, 0.1), dropout(x, 0.1)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1), first)
    assert not torch.equal(first, second)
    # Of a million elements: five standard deviations.
    assert abs(float((first == 0).float().mean()) - 0.1) < 0.0015
    assert abs(float(first.mean()) - 1) < 0.0017
    # Neighbours, of which four share a number, do not depend on each other.
    dropped = (first == 0).float()
    for shift in (1, 2, 3, 4):
        both = float((dropped[:, shift:] * dropped[:, :-shift]).mean())
        assert abs(both - 0.01) < 0.0005


def test_without_training_nothing_is_drawn() -> None:
    x, state = torch.rand(8), torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.rand(1, 5, 2, 4) for _ in range(3))
    many = torch.stack([attention(q, k, v, 0.3) for _ in range(3000)])
    assert many.std(0).min() > 0
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(many.mean(0), expected.transpose(1, 2), atol=0.02, rtol=0)
