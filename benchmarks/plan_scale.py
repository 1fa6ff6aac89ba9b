"""Measures a plan of ten million images, and `addp tokenize status` on its ten thousand shards, in
a folder and on S3.

    python -m benchmarks.plan_scale [--images 10000000] [--s3]

The listing is synthetic (names as ImageNet's); the receipts and shards that `status` finds are
stand-ins of a few bytes. With --s3 a SeaweedFS server is started on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data_pipeline.images.images import ImageEntry
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.sharding.plan import Plan, PlanRecipe, make_plan, shard_images
from data_pipeline.sharding.receipts import ShardReceipt, layout_of, receipt_name, shard_name
from data_pipeline.shards.manifest import ShardEntry
from data_pipeline.storage import Store, open_store
from tests.s3_server import client, environment, s3_server

CLASSES = tuple(f"n{10_000_000 + 1000 * i:08d}" for i in range(1000))


def listing(count: int) -> Iterator[ImageEntry]:
    for i in range(count):
        wordnet_id = CLASSES[i % 1000]
        name = f"{wordnet_id}/{wordnet_id}_{i}.JPEG"
        yield ImageEntry(name, i % 1000, name, 90_000 + i % 50_000)


def finish_shards(store: Store, plan: Plan) -> None:
    identity = plan.identity

    def finish(k: int) -> None:
        size = plan.rows_of(k) * layout_of(plan).stride + 1024
        entry = ShardEntry(
            name=shard_name(k), rows=plan.rows_of(k), bytes=size, sha256="0" * 64, xxh3="0" * 32
        )
        store.replace(entry.name, b"x")
        store.replace(
            receipt_name(k), ShardReceipt(plan=identity, shard=entry).model_dump_json().encode()
        )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(finish, range(plan.shards - 3)))


def status(url: str) -> dict[str, object]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "tokenize", "status", url, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - started
    state = json.loads(done.stdout)
    return {"seconds": round(seconds, 1), "done": state["done"], "missing": state["missing"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    recipe = PlanRecipe(
        views=ViewRecipe(), tokenizer="0" * 64, codebook_size=1024, tokens=256, rows=1000
    )
    print(
        json.dumps(
            {"python": platform.python_version(), "numpy": np.__version__, "images": options.images}
        )
    )
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = str(root / "data")
        if options.s3:
            port = stack.enter_context(s3_server(root / "s3"))
            os.environ.update(environment(port))
            client(port).create_bucket(Bucket="benchmark")
            url = "s3://benchmark/data"
        store = open_store(url)
        started = time.perf_counter()
        plan = make_plan(store, "synthetic", listing(options.images), recipe, lambda: (CLASSES, ()))
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            json.dumps(
                {
                    "plan_seconds": round(seconds, 1),
                    "peak_gib": round(peak, 2),
                    "shards": plan.shards,
                    "list_bytes": plan.slices[-1],
                }
            ),
            flush=True,
        )
        started = time.perf_counter()
        shard_images(store, plan, plan.shards // 2)
        print(
            json.dumps({"list_of_one_shard_ms": round(1000 * (time.perf_counter() - started), 1)})
        )
        finish_shards(store, plan)
        print(
            json.dumps({"status": status(url), "store": "s3" if options.s3 else "folder"}),
            flush=True,
        )


if __name__ == "__main__":
    main()
