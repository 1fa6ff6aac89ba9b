"""Measures the linear probe and the nearest neighbours of `addp evaluate` on made features, and
says what 1.28 million images of 1,000 classes would take.

    python -m benchmarks.probe --images 20000 --width 768 --classes 100
    python -m benchmarks.probe --images 5000 --width 192 --classes 10 --beside    # and scikit-learn
    torchrun --nproc-per-node 8 -m benchmarks.probe --images 1281167 --classes 1000

The extrapolation takes the time of an evaluation of loss and gradient, and that of a pair of a
query and a key, to grow with the number of products. The number of evaluations is that of this run:
it depends on the features.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainer.distributed.collectives import Collectives, own_device
from trainer.distributed.meeting import join_ranks
from trainer.distributed.world import own_cores
from trainer.evaluation.measures.features import Block, Features
from trainer.evaluation.measures.linear_probe import INVERSE_PENALTY, LinearProbe
from trainer.evaluation.measures.neighbours import knn

IMAGENET = (1_281_167, 50_000, 768, 1000)  # training and test images, D of Base, classes
_BLOCK = 4096
_TEST = 25  # one test image for so many training images


def made(images: int, options: argparse.Namespace, ranks: Collectives, seed: int) -> Features:
    """Clusters that overlap. Blocks are drawn by their number, so that any rank can draw them."""
    device = own_device()
    centres = torch.from_numpy(
        np.random.default_rng(0).normal(size=(options.classes, options.width)).astype(np.float32)
    )
    blocks = []
    numbers = range(-(-images // _BLOCK))
    for number in numbers[ranks.rank :: ranks.world_size]:
        rng = np.random.default_rng((seed, number))
        count = min(_BLOCK, images - number * _BLOCK)
        labels = torch.from_numpy(rng.integers(0, options.classes, count))
        noise = rng.normal(0, options.noise, (count, options.width)).astype(np.float32)
        blocks.append(
            Block((centres[labels] + torch.from_numpy(noise)).to(device), labels.to(device))
        )
    return Features(blocks, ranks, device)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, and the seconds by the clock and of this process's processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def memory() -> dict[str, float]:
    """Peaks of this process, GiB."""
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(gib, 2) for name, gib in peaks.items()}


def beside(train: Features) -> dict[str, Any]:
    """scikit-learn's fit of the same features, which must all be on this rank."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    blocks = [Block(*(part.cpu() for part in block)) for block in train]
    x, y = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=2000))
    _, wall, cpu = timed(lambda: model.fit(x, y))
    steps = int(model[-1].n_iter_.max())
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--noise", type=float, default=4.0, help="beside centres of size 1")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the products")
    parser.add_argument("--beside", action="store_true", help="also scikit-learn's fit")
    options = parser.parse_args()
    join_ranks()
    ranks = Collectives()
    if not torch.cuda.is_available():
        torch.set_num_threads(own_cores())
    n, d, k = options.images, options.width, options.classes
    train, test = (made(count, options, ranks, seed) for seed, count in enumerate((n, n // _TEST)))
    dtype = getattr(torch, options.dtype) if options.dtype else None
    probe, wall, cpu = timed(lambda: LinearProbe(train, dtype=dtype))
    right = sum(int((probe(x) == labels).sum()) for x, labels in test)
    top1 = sum(ranks.all_gather(right)) / test.count
    votes, knn_wall, knn_cpu = timed(lambda: knn(train, test))
    images, queries, width, classes = IMAGENET
    share = images * width * classes / (n * d * k)
    pairs = images * queries * width / (n * test.count * d)
    found = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "ranks": ranks.world_size,
        "images, width, classes": [n, d, k],
        "linear": {
            "seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "evaluations": probe.evaluations,
            "cpu_seconds_each": round(cpu / probe.evaluations, 4),
            "top1": top1,
            "imagenet_seconds": round(wall * share),
            "imagenet_cpu_seconds": round(cpu * share),
        },
        "knn": {
            "seconds": round(knn_wall, 2),
            "cpu_seconds": round(knn_cpu, 2),
            **{name: float(right.float().mean()) for name, right in votes.items()},
            "imagenet_seconds": round(knn_wall * pairs),
            "imagenet_cpu_seconds": round(knn_cpu * pairs),
        },
        "peak_gib": memory(),
    }
    if options.beside and ranks.world_size == 1:
        found["scikit-learn"] = beside(train)
    if ranks.rank == 0:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
