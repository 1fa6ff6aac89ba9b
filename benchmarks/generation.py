"""Measures samples a second against a plain loop in the style of the reference: float32, explicit
attention, every image decoded at every step. Networks, sizes and steps are the same.

    python -m benchmarks.generation                        published Base sizes at 256 px
    python -m benchmarks.generation --device cuda --batch 64 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import model.attention
import model.transformer
from model.addp import ADDP
from model.config import Geometry, TokenizerConfig, TransformerConfig
from model.precision import keep_float32
from model.sampler import Generation, advance, generate
from model.sampling_options import SamplingOptions
from model.vq import VQTokenizer
from trainer.config.schema import RunConfig
from trainer.evaluation.trained import Trained, in_precision
from trainer.host_memory import keep_freed_memory

WAYS = ("plain", "fp32", "bf16")


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, backend: str | None = None
) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v; the matrix of weights is written out."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    return (weights @ v).transpose(1, 2)


def plain_loop(
    network: ADDP, tokenizer: VQTokenizer, batch: int, sampling: SamplingOptions
) -> Tensor:
    """Generate a batch as the reference does: each step computes the logits and images of all
    samples."""
    device, length = network.pos_embed.device, network.geometry.tokens
    size = network.geometry.image_size
    state = Generation(
        torch.zeros(batch, 3, size, size, device=device),
        torch.zeros(batch, length, dtype=torch.int64, device=device),
        torch.ones(batch, length, dtype=torch.bool, device=device),
        torch.empty(0),
    )
    model.transformer.attention = explicit_attention
    try:
        for step in range(sampling.steps):
            u = torch.rand(batch, length, device=device)
            gumbel = -torch.log(-torch.log(torch.rand(batch, length, device=device)))
            state = advance(
                network, tokenizer, state, u=u, gumbel=gumbel, sampling=sampling, step=step
            )
    finally:
        model.transformer.attention = model.attention.attention
    return state.image


def ours(network: ADDP, tokenizer: VQTokenizer, batch: int, sampling: SamplingOptions) -> Tensor:
    """Generate a batch as `addp generate` does."""
    for state in generate(
        network, tokenizer, seed=0, start=0, count=batch, sampling=sampling, all_images=False
    ):
        last = state.image
    return last


def seconds(options: argparse.Namespace) -> float:
    """Time one batch, generated one of the `WAYS`."""
    keep_float32()  # as every command and the reference do
    torch.manual_seed(0)
    published = options.size in ("base", "large")
    tokenizer = (
        VQTokenizer(TokenizerConfig(size="published" if published else options.size))
        .eval()
        .to(options.device)
    )
    network = (
        ADDP(Geometry.of(tokenizer.config), TransformerConfig(size=options.size))
        .eval()
        .to(options.device)
    )
    half = in_precision(Trained(network, tokenizer, RunConfig(), None), "bf16")
    sampling = SamplingOptions(steps=options.steps, schedule=options.schedule)
    ways: dict[str, Callable[[SamplingOptions], Tensor]] = {
        "plain": lambda s: plain_loop(network, tokenizer, options.batch, s),
        "fp32": lambda s: ours(network, tokenizer, options.batch, s),
        "bf16": lambda s: ours(half.network, half.tokenizer, options.batch, s),
    }
    if options.way != "plain" and options.device == "cpu":
        keep_freed_memory()  # as `addp generate` and `addp evaluate` do
    on_cuda = options.device != "cpu"
    # A GPU chooses kernels once for each length of the decoder, and every step may have another.
    warm_up = sampling if on_cuda else sampling.model_copy(update={"steps": 2})
    with torch.no_grad():
        for steps in (warm_up, sampling):
            started = time.perf_counter()
            ways[options.way](steps)
            if on_cuda:
                torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="base", help="base, large, demo or tiny")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--way", choices=WAYS, help="time one way in this process, and print its seconds"
    )
    options = parser.parse_args()
    if options.way:
        print(seconds(options))
        return
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        # In turn, so that a slow minute slows all of them; each in a process of its own.
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.generation", *sys.argv[1:], "--way", way]
            times[way].append(
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
            print(f"{way}: {times[way][-1]:.1f} s", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                **{name: value for name, value in vars(options).items() if name != "way"},
                "samples_per_second": {
                    n: round(options.batch / statistics.median(s), 4) for n, s in times.items()
                },
                "speedup_by_repeat": {
                    n: [round(p / s, 2) for p, s in zip(times["plain"], times[n], strict=True)]
                    for n in ("fp32", "bf16")
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
