"""Measures how long ranks take to agree at the border between two steps, and says what that would
be on more ranks.

    python -m benchmarks.agreement [--processes 2 4 8 16] [--json FILE]

Processes on this machine agree over gloo, as ranks do. Two times are measured, each the median over
many agreements and the least of some repeats, which take the numbers of processes in turn: from the
beginning of an agreement to its result, and for how long the training loop is held up where the
result is taken a step later.

The model: gloo sums up around a ring, and then passes the result around it, so that an agreement of
P ranks is 2 (P - 1) messages one after the other. The line t = start + 2 (P - 1) hop is fitted to
the measured times. On one machine a hop is the time to wake a process and to hand it a message; on
several machines the latency of the network comes on top of it (--latency).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.launch.backend import free_port
from trainer.distributed.collectives import Collectives, Flags
from trainer.distributed.meeting import join_ranks

RANKS = (32, 128, 512, 1024, 4096)
WARM_UP, COUNT = 20, 200


def rank(place: dict[str, str], step: float, results: Any) -> None:
    """Agree again and again, at once and then a step of `step` seconds later."""
    os.environ.update(place)
    join_ranks(120.0)
    collectives = Collectives(120.0)
    whole, begun, taken = [], [], []
    for _ in range(WARM_UP + COUNT):
        started = time.perf_counter()
        collectives.agree(Flags())
        whole.append(time.perf_counter() - started)
    for _ in range(COUNT // 4):
        started = time.perf_counter()
        agreement = collectives.begin_to_agree(Flags())
        begun.append(time.perf_counter() - started)
        time.sleep(step)
        started = time.perf_counter()
        agreement.result()
        taken.append(time.perf_counter() - started)
    if collectives.rank == 0:
        held = statistics.median(b + t for b, t in zip(begun, taken, strict=True))
        results.put((statistics.median(whole[WARM_UP:]), held))
    collectives.barrier()


def measure(processes: int, step: float) -> tuple[float, float]:
    """Seconds from the beginning to the result, and seconds that the loop is held up."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.distributed.collectives"])
    port, results = str(free_port()), context.Queue()
    ranks = []
    for number in range(processes):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        place |= {"RANK": str(number), "LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"}
        ranks.append(context.Process(target=rank, args=(place, step, results)))
    for process in ranks:
        process.start()
    times: tuple[float, float] = results.get(timeout=300)
    for process in ranks:
        process.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.1, help="seconds of a step (0.1)")
    parser.add_argument(
        "--latency", type=float, default=25e-6, help="seconds of a message between hosts (25e-6)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in options.processes}
    for _ in range(options.repeats):
        for processes, taken in times.items():
            taken.append(measure(processes, options.step))
    best = {p: tuple(map(min, zip(*taken, strict=True))) for p, taken in times.items()}
    hops = [2 * (processes - 1) for processes in best]
    hop, start = np.polyfit(hops, [whole for whole, _ in best.values()], 1)
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.processor()}; "
        f"a hop {1e6 * hop:.0f} us, a start {1e6 * start:.0f} us"
    )
    for processes, (whole, held) in best.items():
        print(
            f"{processes:5} processes: {1e3 * whole:7.2f} ms to agree, "
            f"{1e3 * held:.2f} ms in which the loop is held up"
        )
    table = {
        ranks: {
            "ring_ms": 1e3 * (start + 2 * (ranks - 1) * (hop + options.latency)),
            "tree_ms": 1e3 * (start + 2 * np.ceil(np.log2(ranks)) * (hop + options.latency)),
        }
        for ranks in RANKS
    }
    for ranks, row in table.items():
        print(f"{ranks:5} ranks by the model: {row['ring_ms']:.1f} ms (tree: {row['tree_ms']:.1f})")
    if options.json:
        figures = {"hop": hop, "start": start, "measured": best, "model": table}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
