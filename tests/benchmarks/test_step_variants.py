"""The step that benchmarks call the reference's computes what ours does, and work is counted as
estimates count it."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from benchmarks.step.rates import Rates
from benchmarks.step.stages import Stages
from benchmarks.step.variants import ReferenceForward, drawn_masks, networks
from benchmarks.step.work import Work, stage_work
from benchmarks.step.worker import Variant
from model.denoising import FrozenNetworks
from model.transformer import Block
from trainer import costs
from trainer.config.schema import RunConfig
from trainer.objectives.addp import denoising_inputs

CPU = torch.device("cpu")


@pytest.fixture
def config() -> RunConfig:
    return Variant("ours", False, "tiny", 3, ("precision=fp32",)).config()


@pytest.fixture(autouse=True)
def _names_as_before() -> Iterator[None]:
    yield
    patch.stopall()


def test_both_variants_have_the_same_loss_and_gradients(config: RunConfig) -> None:
    made = networks(config, CPU)
    for network in made:
        network.eval()  # no dropout
    size = config.geometry.image_size
    images = torch.rand(3, 3, size, size)
    masks = drawn_masks(config, 0, CPU)
    with torch.no_grad():
        ids = made.tokenizer.encode(images)
    frozen = FrozenNetworks(made.tokenizer, made.predictor)
    inputs = denoising_inputs(frozen, ids, masks, config.label_smoothing)
    ours = made.network(**inputs)
    probe = next(m for m in made.network.modules() if isinstance(m, Block)).attn.qkv.weight
    (our_gradient,) = torch.autograd.grad(ours, probe)
    theirs = ReferenceForward(config, made, Stages(CPU))(images, masks)
    (their_gradient,) = torch.autograd.grad(theirs, probe)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)
    torch.testing.assert_close(their_gradient, our_gradient, rtol=1e-3, atol=1e-7)


def test_counted_operations_are_those_of_estimates(config: RunConfig) -> None:
    rates = Rates(product=1e12, sustained=1e12, bandwidth=1e11, sheet=None)
    work = stage_work(config, CPU, rates, reference=False)
    counted = sum(stage.operations for stage in work.values()) / config.batch.micro
    # The step also makes the expected codes, and no logits that do not count.
    assert counted == pytest.approx(costs.image_operations(config).total, rel=0.1)
    for stage in work.values():
        bounds = (stage.operations / rates.product, stage.bytes / rates.bandwidth)
        assert stage.least >= 0.999 * max(bounds)


def test_a_stage_says_what_bounds_it() -> None:
    products, memory = Work(1e9, 1e6, 1.0, 0.1), Work(1e6, 1e9, 0.1, 1.0)
    assert products.bound(1.5) == "products"
    assert memory.bound(1.5) == "memory"
    assert products.bound(3.0) == memory.bound(3.0) == "overhead"


def test_a_stage_within_another_counts_once() -> None:
    class Outer:
        def run(self) -> None:
            self.part()

        def part(self) -> None:
            pass

    stages, outer = Stages(CPU), Outer()
    moments = iter([0.0, 1.0, 4.0, 5.0])  # in, in, out, out
    stages.mark = lambda: next(moments)  # type: ignore[method-assign]
    stages.follow(outer, "run", "outer")
    stages.follow(outer, "part", "part")
    outer.run()
    assert stages.take(-1.0, 6.0) == {"part": 3.0, "outer": 2.0, "rest": 2.0, "step": 7.0}
