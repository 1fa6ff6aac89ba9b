"""Measures whether a consumer at an 8-GPU node's rate ever waits for a cold cache on S3 with 20 ms
of latency.

    python -m benchmarks.streaming_s3

Two ranks (processes) share a cache and consume 12,000 samples/s together. SeaweedFS, the proxy that
delays and both ranks run on this machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.storage import open_store
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from tests.s3_server import FaultProxy, client, environment, s3_server
from tests.token_sets import write_tokens

URL = "s3://benchmark/tokens"
BATCH, RANKS = 256, 2


def consume(rank: int, cache: str, rate: float, results: Any) -> None:
    """Ask for each step's slice when it is due, and report how late the answers were."""
    started = time.perf_counter()
    loader = TokenLoader(
        URL,
        global_batch=BATCH,
        seed=0,
        options=LoaderOptions(labels=False, cache=Path(cache), window=8),
    )
    share = (rank * BATCH // RANKS, BATCH // RANKS)
    loader.batch(0, *share)
    first = time.perf_counter() - started
    began, waits = time.perf_counter(), []
    for step in range(1, loader.schedule.steps_per_epoch):
        due = began + step * BATCH / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        asked = time.perf_counter()
        loader.batch(step, *share)
        waits.append(time.perf_counter() - asked)
    seconds = time.perf_counter() - began
    results.put(
        {
            "rank": rank,
            "first_batch_s": round(first, 2),
            "longest_wait_ms": round(1000 * max(waits), 1),
            "waits_over_10_ms": sum(w > 0.01 for w in waits),
            "steps": len(waits),
            "samples_per_second": round(RANKS * len(waits) * share[1] / seconds),
        }
    )
    loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate", type=float, default=12_000, help="samples/s of both ranks together"
    )
    parser.add_argument("--latency", type=float, default=0.02, help="seconds a request")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(
        json.dumps({"python": platform.python_version(), "numpy": np.__version__, "cores": cores})
    )
    with tempfile.TemporaryDirectory() as root, s3_server(Path(root) / "s3") as port:
        os.environ.update(environment(port))
        client(port).create_bucket(Bucket="benchmark")
        manifest = write_tokens(open_store(URL), [1000] * 80, views=1, length=256)
        proxy = FaultProxy(port)
        proxy.latency = options.latency
        os.environ.update(environment(proxy.port))
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        ranks = [
            context.Process(target=consume, args=(r, f"{root}/cache", options.rate, results))
            for r in range(RANKS)
        ]
        for process in ranks:
            process.start()
        for _ in ranks:
            print(json.dumps(results.get(timeout=300)), flush=True)
        for process in ranks:
            process.join()
        size = sum(s.bytes for s in manifest.shards)
        print(
            json.dumps(
                {
                    "bytes_of_shards": size,
                    "downloaded": proxy.response_bytes,
                    "times": round(proxy.response_bytes / size, 3),
                }
            )
        )
        proxy.close()


if __name__ == "__main__":
    main()
