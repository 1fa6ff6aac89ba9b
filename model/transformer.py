"""Building blocks of the transformers, under the names of the official checkpoints (ViT, arXiv
2010.11929; MAE, arXiv 2111.06377).

Shapes: B images, M positions (the class slot and L patches, fewer where some are left out), D wide.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import attention
from model.dropout import dropout

# Rows that a GPU's tensor cores take together. For an odd number of them, as the vocabulary's 2025,
# cuBLAS takes kernels of an older generation, at a third of the speed.
_ROWS = 64


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries, keys and values."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, M, D) -> (B, M, D)."""
        b, m, d = x.shape
        q, k, v = self.qkv(x).view(b, m, 3, self.heads, d // self.heads).unbind(2)
        x = attention(q, k, v, self.dropout if self.training else 0.0).reshape(b, m, d)
        return dropout(self.proj(x), self.dropout, self.training)


class Mlp(nn.Module):
    """Linear -> exact GELU -> linear, with dropout after both."""

    def __init__(self, dim: int, dropout: float, ratio: int = 4) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, M, D) -> (B, M, D)."""
        x = dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return dropout(self.fc2(x), self.dropout, self.training)


class LayerScale(nn.Module):
    """A learned factor for each channel (CaiT, arXiv 2103.17239), as in BEiT and DINOv2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) -> (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    ls1, ls2: what scales the branches; nothing, but for ViTs with a `LayerScale`.
    recompute: whether the activations are computed again in the backward pass instead of being kept
    (see `recompute_blocks`). drop_path: the probability with which, in training, an image skips a
    branch (stochastic depth, see `drop_paths`). varying_length: whether M differs from call to
    call. compiled: what `compile_blocks` made of `branches`, or None.
    """

    recompute = False
    drop_path = 0.0
    varying_length = False
    compiled: Callable[[Block, Tensor, Tensor | None], Tensor] | None = None

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, dropout)
        self.ls1: nn.Module = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dropout)
        self.ls2: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, M, D) -> (B, M, D); or (B, H, W, D), where `attn` takes such."""
        scales = self._draw_scales(x)
        if self.recompute and torch.is_grad_enabled():
            # The reentrant form: the other one compares shapes that ZeRO-3 changes in between.
            result: Tensor = checkpoint(self._recomputed, x, scales, use_reentrant=True)
            return result
        return self._compute(x, scales)

    def _recomputed(self, x: Tensor, scales: Tensor | None) -> Tensor:
        """What is called once in the forward pass, where nothing is kept, and again in the backward
        pass."""
        if self.compiled is None or torch.is_grad_enabled():
            return self._compute(x, scales)
        # The same graph both times: one without gradients might draw its dropout in another order.
        with torch.enable_grad():
            return self._compute(x, scales).detach()

    def _compute(self, x: Tensor, scales: Tensor | None) -> Tensor:
        if self.compiled is None:
            return self.branches(x, scales)
        if self.varying_length:
            # One graph for all lengths. It is said here, since recomputing makes new tensors.
            torch._dynamo.mark_dynamic(x, 1)
        return self.compiled(self, x, scales)

    def branches(self, x: Tensor, scales: Tensor | None) -> Tensor:
        """x: (B, M, D), scales: (2, B, 1, 1), of the two branches, or None -> (B, M, D). It is
        compiled without a break, and so calls nothing that waits, draws masks or looks at values.
        """
        attended = self.ls1(self.attn(self.norm1(x)))
        x = x + (attended if scales is None else attended * scales[0].to(attended.dtype))
        mapped = self.ls2(self.mlp(self.norm2(x)))
        return x + (mapped if scales is None else mapped * scales[1].to(mapped.dtype))

    def _draw_scales(self, x: Tensor) -> Tensor | None:
        """Draw what the branches are multiplied by: 0 with the probability `drop_path`. They are an
        input of the compiled graph; the probability, a constant in it, would make one graph for
        each block."""
        if not self.drop_path or not self.training:
            return None
        shape = (x.shape[0], *(1 for _ in x.shape[1:]))
        draws = [torch.rand(shape, device=x.device) for _ in range(2)]
        return (torch.stack(draws) >= self.drop_path).to(x.dtype) / (1 - self.drop_path)


class MlmHead(nn.Module):
    """Logits over the vocabulary, as in MAGE: linear -> GELU -> LayerNorm (eps 1e-5) -> dot product
    with the word embeddings, plus a bias.

    No gradient flows into the word embeddings here; they learn as inputs only.
    """

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)
        self.ln = nn.LayerNorm(dim, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))

    def forward(self, x: Tensor, word_embeddings: Tensor, count: int | None = None) -> Tensor:
        """x: (B, M, D), word_embeddings: (V, D) -> (B, M, V), or (B, M, count) of the first `count`
        entries of the vocabulary."""
        words, bias = word_embeddings.detach()[:count], self.bias[..., :count]
        x = self.ln(F.gelu(self.fc(x)))
        return product_with_rows(x, words, _ROWS if x.is_cuda else 1) + bias


def product_with_rows(x: Tensor, rows: Tensor, multiple: int) -> Tensor:
    """Return x (..., D) times rows (N, D): (..., N). For the product, zeros fill the rows up to a
    multiple."""
    missing = -len(rows) % multiple
    padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    return (x @ padded.t())[..., : len(rows)]


def blocks(
    depth: int, dim: int, heads: int, dropout: float, *, varying_length: bool = False
) -> nn.ModuleList:
    """Return `depth` blocks of width `dim`. varying_length: as in `Block`."""
    layers = [Block(dim, heads, dropout) for _ in range(depth)]
    for layer in layers:
        layer.varying_length = varying_length
    return nn.ModuleList(layers)


def blocks_of(network: nn.Module) -> list[Block]:
    """Return all blocks of a network."""
    return [module for module in network.modules() if isinstance(module, Block)]


def recompute_blocks(network: nn.Module, every: int) -> int:
    """Turn on activation checkpointing in each `every`-th block of a network (0: in none), and
    return the number of these blocks."""
    layers = blocks_of(network)
    for index, block in enumerate(layers):
        block.recompute = every > 0 and index % every == 0
    return sum(block.recompute for block in layers)


def drop_paths(layers: nn.ModuleList, rate: float) -> None:
    """Turn on stochastic depth (arXiv 1603.09382), with a probability that grows linearly from 0 to
    `rate` at the last block."""
    for index, block in enumerate(layers):
        assert isinstance(block, Block)
        block.drop_path = rate * index / max(1, len(layers) - 1)


def initialise(module: nn.Module) -> None:
    """Fill a network with its first weights: Xavier-uniform linears and convolutions (as one
    matrix), zero biases, N(0, 0.02) embeddings."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)


def learned(*shape: int) -> nn.Parameter:
    """Return a learned tensor of this shape that starts as N(0, 0.02)."""
    values = torch.empty(*shape)
    # On the meta device only shapes count (`networks.outline`), and drawing there takes seconds.
    return nn.Parameter(values if values.is_meta else torch.randn(*shape) * 0.02)


def positions(kind: str, grid: int, dim: int) -> nn.Parameter:
    """Return a learned table of positions, (1, 1 + grid * grid, D), with index 0 for the class
    slot.

    kind: how it starts. "normal": N(0, 0.02). "sincos": two-dimensional sines, so that neighbours
    are alike from the start.
    """
    if kind == "normal":
        return learned(1, 1 + grid * grid, dim)
    table = torch.empty(1, 1 + grid * grid, dim)
    return nn.Parameter(table if table.is_meta else _sines(grid, dim))


def _sines(grid: int, dim: int) -> Tensor:
    """Return (1, 1 + grid * grid, D): for each patch sines and cosines of y, then of x, D / 4 of
    each at falling frequencies; zeros for the class slot."""
    assert dim % 4 == 0, dim
    y, x = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    frequencies = 1000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    waves = [f(p.reshape(-1, 1) * frequencies) for p in (y, x) for f in (torch.sin, torch.cos)]
    return 0.5 * torch.cat([torch.zeros(1, dim), torch.cat(waves, 1)]).unsqueeze(0)


def masked_count_of(mask: Tensor) -> int:
    """Return how many positions a mask (B, L) masks of each image, which is the same number. It
    waits for the device."""
    counts = mask.sum(1)
    count = int(counts[0])
    assert bool((counts == count).all()), "every image of a batch needs as many masked tokens"
    return count


def gather_positions(x: Tensor, at: Tensor) -> Tensor:
    """Return the vectors of x (B, L, D) at positions `at` (B, N): (B, N, D)."""
    return x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def smoothed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    smoothing: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean, over masked positions, of the cross-entropy with label smoothing over all V
    entries: a float32 scalar (ADDP eq. 8, with the smoothing of the reference).

    logits: (B, L, V). target: token ids (B, L), or probabilities (B, L, K) with K <= V, zero beyond
    K. mask: (B, L) bool; all positions count if None. weights: of the samples, (B,); all 1 if None.
    If no sample counts, the result is 0.
    """
    logp = F.log_softmax(logits.float(), dim=-1)
    if target.dtype.is_floating_point:
        k = target.shape[-1]
        matched = (target.float() * logp[..., :k]).sum(-1)
    else:
        matched = logp.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
    loss = -(1 - smoothing) * matched - smoothing * logp.mean(-1)
    counted = torch.ones_like(loss) if mask is None else mask.to(loss.dtype)
    if weights is not None:
        counted = counted * weights.to(loss.dtype).unsqueeze(1)
        return (loss * counted).sum() / counted.sum().clamp_min(1)
    return (loss * counted).sum() / counted.sum()
