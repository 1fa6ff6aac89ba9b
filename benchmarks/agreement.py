"""Measures how long ranks take to agree at the border between two steps, and says what that would
be on more ranks.

    python -m benchmarks.agreement [--processes 2 4 8 16] [--json FILE]

Processes on this machine agree over gloo, as ranks do. Repeats take the numbers of processes in
turn. Two times are measured: from the beginning of an agreement to its result, and for how long the
training loop is held up where the result is taken a step later. Of the first the median and the
least are printed, of the second the median.

The model: gloo sums up around a ring, and then passes the result around it, so that an agreement of
P ranks is 2 (P - 1) messages one after the other. The line t = start + 2 (P - 1) hop is fitted to
the least times, which other work on the machine disturbs least. On one machine a hop is the time to
wake a process and to hand it a message; on several machines the latency of the network comes on top
of it (--latency).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cluster.launch.backend import free_port
from trainer.distributed.collectives import Collectives, Flags
from trainer.distributed.meeting import join_ranks

RANKS = (32, 128, 512, 1024, 4096)
WARM_UP, COUNT = 20, 200


class Times(NamedTuple):
    """Seconds from the beginning to the result, the least and the median; and for which the loop is
    held up, the median."""

    least: float
    median: float
    held: float


def rank(place: dict[str, str], step: float, results: Any) -> None:
    """Agree again and again, at once and then a step of `step` seconds later."""
    os.environ.update(place)
    join_ranks(120.0)
    collectives = Collectives(120.0)
    whole, held = [], []
    for _ in range(WARM_UP + COUNT):
        started = time.perf_counter()
        collectives.agree(Flags())
        whole.append(time.perf_counter() - started)
    for _ in range(COUNT // 4):
        started = time.perf_counter()
        agreement = collectives.begin_to_agree(Flags())
        begun = time.perf_counter()
        time.sleep(step)
        asked = time.perf_counter()
        agreement.result()
        held.append(begun - started + time.perf_counter() - asked)
    if collectives.rank == 0:
        own = whole[WARM_UP:]
        results.put(Times(min(own), statistics.median(own), statistics.median(held)))
    collectives.barrier()


def measure(processes: int, step: float) -> Times:
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
    times: Times = results.get(timeout=300)
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
    taken: dict[int, list[Times]] = {count: [] for count in options.processes}
    for _ in range(options.repeats):
        for processes, repeats in taken.items():
            repeats.append(measure(processes, options.step))
    best = {count: Times(*map(min, zip(*repeats, strict=True))) for count, repeats in taken.items()}
    hops = [2 * (processes - 1) for processes in best]
    hop, start = np.polyfit(hops, [times.least for times in best.values()], 1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}")
    for processes, times in best.items():
        print(
            f"{processes:5} processes: {1e3 * times.least:.2f} ms at least, "
            f"{1e3 * times.median:.2f} ms (median); the loop is held up for "
            f"{1e3 * times.held:.2f} ms"
        )
    print(f"a hop {1e6 * hop:.0f} us, a start {1e6 * start:.0f} us")
    hop += options.latency
    model = {
        ranks: (start + 2 * (ranks - 1) * hop, start + 2 * math.ceil(math.log2(ranks)) * hop)
        for ranks in RANKS
    }
    for ranks, (ring, tree) in model.items():
        print(f"{ranks:5} ranks by the model: {1e3 * ring:.1f} ms (by a tree {1e3 * tree:.1f} ms)")
    if options.json:
        figures = {"hop": hop, "start": start, "measured": best, "ring and tree": model}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
