"""What a step takes on N GPUs, from what it takes on one.

    step = accumulation x micro batch + optimizer + communication that nothing hides

A micro batch takes a fixed time and a time for each image. A collective takes what the better of a
ring and a tree takes: a ring sends 2 (N - 1) / N of the bytes in 2 (N - 1) messages for an
all-reduce, and half of both for a gathering or scattering; a tree sends twice the bytes in
2 log2 N messages. Where several nodes take part, a node's network carries the bytes once for all of
its GPUs (each GPU's ring leaves the node by its own port), and NVLink carries them for each GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.scaling.counting import Link, Traffic


class Compute(NamedTuple):
    """Of one GPU, in seconds. image: forward and backward, for each image of a micro batch. fixed:
    beside it, for each micro batch. optimizer: for each step."""

    image: float
    fixed: float
    optimizer: float

    def micro_batch(self, images: float) -> float:
        return self.fixed + self.image * images


class Cluster(NamedTuple):
    """inside: the link of one GPU in its node. outside: that of one node to the others. gpus: of a
    node. overlap: the share of the gradients' exchange that can run beside the backward pass."""

    inside: Link
    outside: Link
    gpus: int
    overlap: float


class Prediction(NamedTuple):
    """A step on N GPUs, in seconds. exposed: communication that nothing hides."""

    gpus: int
    micro: float
    accumulation: int
    compute: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    def efficiency(self, alone: Prediction) -> float:
        """Return the images a second of each of the GPUs over those of one alone."""
        return alone.seconds / (self.gpus * self.seconds)


def measured_compute(file: Path, runs: list[str]) -> tuple[Compute, int]:
    """Read the steps of `benchmarks.step` from JSON lines: those of one run, or of two that differ
    in the micro batch, which tell what is fixed. Returns them with the largest micro batch.

    Of one run, the optimizer and what lies between the stages are what is fixed.
    """
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    micro, stages = {}, {}
    for run in runs:
        own = [row for row in rows if run in (row.get("run"), row.get("variant"))]
        if not own:
            raise SystemExit(f"{file} has no run {run!r}")
        micro[run] = next(row["micro"] for row in own if "micro" in row)
        stages[run] = {row["stage"]: row["ms"] / 1e3 for row in own if "stage" in row}
    last = max(runs, key=lambda run: micro[run])
    optimizer = stages[last]["optimizer"]
    if len(runs) == 1:
        fixed = stages[last]["rest"]
        image = (stages[last]["step"] - optimizer - fixed) / micro[last]
    else:
        first = min(runs, key=lambda run: micro[run])
        image = (stages[last]["step"] - stages[first]["step"]) / (micro[last] - micro[first])
        fixed = max(0.0, stages[last]["step"] - optimizer - image * micro[last])
    return Compute(image, fixed, optimizer), micro[last]


def exchange_seconds(traffic: Traffic, gpus: int, cluster: Cluster) -> float:
    """Return how long collectives of one kind take over so many GPUs, one after another."""
    if gpus == 1:
        return 0.0
    inside, outside = cluster.inside, cluster.outside
    nodes = math.ceil(gpus / cluster.gpus)
    crossing = nodes if nodes > 1 else 0  # messages of a ring that leave a node
    rate = min(inside.bandwidth, outside.bandwidth) if crossing else inside.bandwidth
    rounds = 2 if traffic.kind == "all_reduce" else 1
    # Without all-reduce, a gradient goes to each rank on its own: as many calls as ranks.
    calls = traffic.calls * (gpus / 2 if traffic.kind == "reduce" else 1)
    bytes_seconds = traffic.bytes / rate
    ring = (gpus - 1 - crossing) * inside.latency + crossing * outside.latency
    tree = math.log2(min(gpus, cluster.gpus)) * inside.latency + math.log2(nodes) * outside.latency
    return rounds * min(
        (gpus - 1) / gpus * bytes_seconds + calls * ring, bytes_seconds + calls * tree
    )


def predict(
    compute: Compute,
    traffic: Iterable[Traffic],
    gpus: int,
    global_batch: int,
    largest_micro: int,
    cluster: Cluster,
) -> Prediction:
    """Return a step on so many GPUs, at the largest micro batch that the global batch leaves."""
    accumulation = max(1, math.ceil(global_batch / (gpus * largest_micro)))
    micro = global_batch / (gpus * accumulation)
    exchanged = sum(
        exchange_seconds(of, gpus, cluster) * (accumulation if of.repeated else 1) for of in traffic
    )
    worked = accumulation * compute.micro_batch(micro)
    exposed = max((1 - cluster.overlap) * exchanged, exchanged - worked)
    return Prediction(gpus, micro, accumulation, worked + compute.optimizer, exposed)
