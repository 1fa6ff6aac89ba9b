"""Building blocks of the two transformers, under the names of the official checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import attention


class Attention(nn.Module):
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
        return F.dropout(self.proj(x), self.dropout, self.training)


class Mlp(nn.Module):
    def __init__(self, dim: int, dropout: float, ratio: int = 4) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block: LayerNorm eps 1e-6, qkv bias, MLP ratio 4, exact GELU.

    recompute: keep no activations for the backward pass, but compute them again there (see
    `recompute_blocks`). drop_path: probability with which, in training, an image takes no part in a
    branch (stochastic depth).
    """

    recompute = False
    drop_path = 0.0

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # The reentrant form: the other one compares shapes that ZeRO-3 changes in between.
            result: Tensor = checkpoint(self._forward, x, use_reentrant=True)
            return result
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop_path
        return x * (kept.to(x.dtype) / (1 - self.drop_path))


class MlmHead(nn.Module):
    """Logits over the vocabulary: linear -> GELU -> LayerNorm (eps 1e-5) -> dot with word
    embeddings, plus a bias.

    No gradient flows into the word embeddings here; they learn as inputs only.
    """

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)
        self.ln = nn.LayerNorm(dim, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        """x: (B, M, D), word_embeddings: (V, D) -> (B, M, V)."""
        return self.ln(F.gelu(self.fc(x))) @ word_embeddings.detach().t() + self.bias


def blocks(depth: int, dim: int, heads: int, dropout: float) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))


def recompute_blocks(network: nn.Module, every: int) -> int:
    """Activation checkpointing of each `every`-th block of a network; 0: of none. Returns of how
    many."""
    found = [part for part in network.modules() if isinstance(part, Block)]
    for index, block in enumerate(found):
        block.recompute = every > 0 and index % every == 0
    return sum(block.recompute for block in found)


def drop_paths(found: nn.ModuleList, rate: float) -> None:
    """Stochastic depth (arXiv 1603.09382): a probability that grows linearly from 0 to `rate` at
    the last block."""
    for index, block in enumerate(found):
        assert isinstance(block, Block)
        block.drop_path = rate * index / max(1, len(found) - 1)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linears and convolutions (as one matrix), zero biases, N(0, 0.02)
    embeddings."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)


def learned(*shape: int) -> nn.Parameter:
    """A learned token, N(0, 0.02)."""
    return nn.Parameter(torch.randn(*shape) * 0.02)


def positions(kind: str, grid: int, dim: int) -> nn.Parameter:
    """A learned table (1, 1 + grid * grid, D), index 0 for the class slot.

    kind "normal": N(0, 0.02). "sincos": two-dimensional sines, so that neighbours are alike from
    the start.
    """
    if kind == "normal":
        return learned(1, 1 + grid * grid, dim)
    assert dim % 4 == 0, dim
    y, x = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    frequencies = 1000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    waves = [f(p.reshape(-1, 1) * frequencies) for p in (y, x) for f in (torch.sin, torch.cos)]
    return nn.Parameter(0.5 * torch.cat([torch.zeros(1, dim), torch.cat(waves, 1)]).unsqueeze(0))


def smoothed_cross_entropy(
    logits: Tensor, target: Tensor, mask: Tensor, smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """Mean over masked positions of the cross-entropy with label smoothing over all V entries, in
    float32.

    logits: (B, L, V). target: token ids (B, L), or probabilities (B, L, K) with K <= V, zero beyond
    K. mask: (B, L) bool. weights: of the samples, (B,); all 1 when None. Returns a scalar, 0 where
    no sample counts. (ADDP eq. 8, with the smoothing of the reference.)
    """
    logp = F.log_softmax(logits.float(), dim=-1)
    if target.dtype.is_floating_point:
        k = target.shape[-1]
        matched = (target.float() * logp[..., :k]).sum(-1)
    else:
        matched = logp.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
    loss = -(1 - smoothing) * matched - smoothing * logp.mean(-1)
    counted = mask.to(loss.dtype)
    if weights is not None:
        counted = counted * weights.to(loss.dtype).unsqueeze(1)
        return (loss * counted).sum() / counted.sum().clamp_min(1)
    return (loss * counted).sum() / counted.sum()
