"""What torch.compile makes of the networks: a few graphs, and the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from model.addp import ADDP
from model.compiling import compilations, compile_blocks, torch_compiler
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.denoising import FrozenNetworks
from model.masking import DenoisingMasks, masked_count, ratio_table
from model.predictor import TokenPredictor
from model.transformer import Block, blocks, drop_paths, recompute_blocks
from model.vq import VQTokenizer

SIZES = TransformerConfig(
    dim=16, depth=2, heads=2, decoder_depth=2, decoder_heads=4, dropout=0.1, positions="sincos"
)


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def networks(transformer: TransformerConfig = SIZES) -> tuple[FrozenNetworks, ADDP]:
    """256 tokens an image, as published, in narrow networks."""
    torch.manual_seed(0)
    sizes = TokenizerConfig(
        image_size=32, channels=4, channel_multipliers=(1, 1), residual_blocks=1, code_dim=4,
        codebook_size=16, norm_groups=2,
    )  # fmt: skip
    tokenizer, geometry = VQTokenizer(sizes), Geometry.of(sizes)
    predictor, network = TokenPredictor(geometry, transformer), ADDP(geometry, transformer)
    return FrozenNetworks(tokenizer, predictor), network.train()


def masks(masked: int, rows: int = 2, length: int = 256) -> DenoisingMasks:
    mask = torch.arange(length).expand(rows, -1) < masked
    return DenoisingMasks(mask, mask, masked)


def loss(frozen: FrozenNetworks, network: ADDP, ids: torch.Tensor, masked: int) -> torch.Tensor:
    drawn = masks(masked, *ids.shape)
    noisy = frozen(ids, drawn)
    return network(
        noisy.x_t, ids, drawn.mask_t, noisy.target, 0.1, visible_count=ids.shape[1] - masked
    )


def test_all_mask_ratios_take_a_few_graphs() -> None:
    """The decoder has a length for each ratio. Graphs are without a break, as `fullgraph` demands:
    the VQ decoder, blocks of two kinds in the predictor, of two in ADDP."""
    frozen, network = networks()
    compiler = torch_compiler("aot_eager")
    frozen.use_compiler(compiler)
    assert compile_blocks(network, compiler) == 4
    ids, before = torch.randint(16, (2, 256)), compilations()
    for ratio in ratio_table()[0]:
        loss(frozen, network, ids, masked_count(256, ratio)).backward()
    assert compilations() - before == 5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputation_and_mixed_precision(dropout: float) -> None:
    """A recomputed block takes the graph of others, and draws its dropout again. Eager networks
    draw another on CPUs."""
    _, network = networks(SIZES.model_copy(update={"dropout": dropout}))
    images, ids, target = (
        torch.rand(2, 3, 32, 32),
        torch.randint(16, (2, 256)),
        torch.rand(2, 256, 16),
    )

    def gradients(every: int, masked: int) -> torch.Tensor:
        recompute_blocks(network, every)
        network.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            mask = masks(masked).mask_t
            network(images, ids, mask, target, 0.1, visible_count=256 - masked).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    expected = gradients(0, 200)
    compile_blocks(network, torch_compiler("aot_eager"))
    before = compilations()
    if dropout:
        expected = gradients(0, 200)
    for every, masked in ((0, 200), (1, 200), (1, 140), (2, 255)):
        found = gradients(every, masked)
        if masked == 200:  # to bfloat16's rounding
            assert float((found - expected).norm() / expected.norm()) < 0.05
    assert compilations() - before == 2


def test_stochastic_depth_makes_no_graph_for_each_block() -> None:
    torch.manual_seed(0)
    layers = blocks(5, 16, 2, dropout=0.0).train()
    drop_paths(layers, 0.5)
    x = torch.randn(8, 17, 16)
    results = []
    for compiler in (None, torch_compiler("aot_eager")):
        compile_blocks(layers, compiler)
        torch.manual_seed(1)
        before, y = compilations(), x
        for layer in layers:
            y = layer(y)
        results.append(y)
    torch.testing.assert_close(*results)
    assert compilations() - before == 2  # the first block drops nothing


def test_what_is_not_compiled_any_more_is_as_before(tokenizer: VQTokenizer) -> None:
    frozen = FrozenNetworks(copy.deepcopy(tokenizer), predictor_for(tokenizer))
    ids, drawn = torch.randint(16, (2, 16)), masks(9, length=16)
    expected = frozen(ids, drawn)
    frozen.use_compiler(torch_compiler("aot_eager"))
    names = list(frozen.state_dict())
    assert copy.deepcopy(frozen)(ids, drawn).x_t.shape == expected.x_t.shape
    assert list(frozen.state_dict()) == names  # no wrapper's
    frozen.use_compiler(None)
    before = compilations()
    assert torch.equal(frozen(ids, drawn).x_t, expected.x_t) and compilations() == before


def predictor_for(tokenizer: VQTokenizer) -> TokenPredictor:
    torch.manual_seed(0)
    return TokenPredictor(Geometry.of(tokenizer.config), SIZES)


@pytest.mark.long
def test_inductor_computes_the_same(tokenizer: VQTokenizer) -> None:
    """The compiler that runs use, with real kernels: frozen networks, and a block that learns."""
    frozen = FrozenNetworks(copy.deepcopy(tokenizer), predictor_for(tokenizer))
    block = Block(16, 2, 0.0)
    ids, drawn, x = torch.randint(16, (2, 16)), masks(9, length=16), torch.randn(2, 9, 16)
    results = []
    for compiler in (None, torch_compiler()):
        frozen.use_compiler(compiler)
        compile_blocks(block, compiler)
        noisy, leaf = frozen(ids, drawn), x.clone().requires_grad_()
        block.zero_grad()
        block(leaf).square().sum().backward()
        gradients = [p.grad.clone() for p in (leaf, *block.parameters()) if p.grad is not None]
        results.append([noisy.x_t, noisy.target, *gradients])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
