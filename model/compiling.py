"""torch.compile on what is worth it: transformer blocks one by one, and a frozen VQ decoder as a
whole.

Blocks of equal sizes share a graph, so that a network of any depth compiles a few. What is not
compiled stays simple: an engine's hooks, recomputation and the draws of stochastic depth lie
between blocks. No module is wrapped, and so no parameter gets another name.

Shapes are fixed, but for the length of ADDP's decoder, which is a symbol. A graph that needs a
break is refused with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.attention import make_traceable
from model.transformer import Block, blocks_of

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def torch_compiler(backend: str = "inductor", *, deterministic: bool = False) -> Compiler:
    """Return torch.compile as the networks are compiled with it. backend: of torch.compile.
    deterministic: whether kernels must add up in the same order after each start, which rules out
    choosing them by their measured speed."""
    make_traceable()
    options: dict[str, Any] | None = {"deterministic": True} if deterministic else None

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(
            function, backend=backend, dynamic=False, fullgraph=True, options=options
        )

    return compiler


def compile_blocks(network: nn.Module, compiler: Compiler | None) -> int:
    """Compile each block of a network, at its first call; None: no longer. Returns the number of
    blocks."""
    compiled = compiler(Block.branches) if compiler else None
    layers = blocks_of(network)
    for block in layers:
        block.compiled = compiled
    return len(layers)


def is_compiled(network: nn.Module) -> bool:
    """Return whether blocks of a network are compiled."""
    return any(block.compiled is not None for block in blocks_of(network))


def compilations() -> int:
    """Return how many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
