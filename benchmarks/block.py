"""Measures what dropout costs a transformer block on a CPU: the forward and the backward pass of a
block of Base's encoder, and of its decoder, with dropout and without it, in turns.

    python -m benchmarks.block       # CPU milliseconds on one core: the least, and the median

Without dropout, PyTorch's kernel for attention computes; with it, the products and the softmax one
by one (`model/attention.py`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.startup import processor
from model.config import Geometry
from model.precision import keep_float32
from model.transformer import Block
from trainer.config.reading import load_config
from trainer.host_memory import keep_freed_memory
from trainer.recipes import recipe


def pass_milliseconds(block: nn.Module, x: Tensor, mixed: bool) -> float:
    """Return the CPU milliseconds of a forward and a backward pass."""
    began = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        y = block(x)
    y.backward(torch.ones_like(y))
    block.zero_grad()
    return 1e3 * (time.thread_time() - began)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro", type=int, default=2, help="images")
    parser.add_argument("--repeats", type=int, default=9, help="turns, beside one to warm up")
    asked = parser.parse_args()
    keep_float32()
    keep_freed_memory()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, Python {platform.python_version()}")
    sizes = load_config(recipe("base")).addp.sizes
    positions = 1 + Geometry().tokens
    # The decoder sees the visible tokens, two fifths at the mean ratio, once more.
    lengths = {"encoder": (sizes.heads, positions), "decoder": (sizes.decoder_heads, 360)}
    print("| block | precision | without dropout | with dropout |\n|---|---|---|---|")
    for name, (heads, length) in lengths.items():
        x = torch.randn(asked.micro, length, sizes.dim, requires_grad=True)
        blocks = {p: Block(sizes.dim, heads, p) for p in (0.0, sizes.dropout)}
        for mixed in (False, True):
            turns = [
                {p: pass_milliseconds(block, x, mixed) for p, block in blocks.items()}
                for _ in range(asked.repeats + 1)
            ][1:]
            columns = [sorted(turn[p] for turn in turns) for p in blocks]
            cells = [f"{column[0]:.1f}; {statistics.median(column):.1f}" for column in columns]
            print(f"| {name} | {'bf16' if mixed else 'float32'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
