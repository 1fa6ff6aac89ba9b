"""Work until the first batch, at the start and at half of an epoch, and the size of the state.

    python -m benchmarks.streaming_resume

Shards are hard links to one file, so that data sets of 1.28 and 100 million samples fit on a laptop; reading them is
real.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipeline.dataset import MANIFEST, manifest_bytes
from data_pipeline.loader import LoaderOptions, LoaderState, TokenLoader
from data_pipeline.storage import LocalStore
from tests.token_sets import write_tokens

ROWS, BATCH = 1000, 4096


def make(folder: Path, shards: int) -> None:
    """`shards` names of one shard of 1,000 rows, V = 10, L = 256."""
    manifest = write_tokens(LocalStore(folder), [ROWS], views=10, length=256)
    first = manifest.shards[0]
    entries = [first.model_copy(update={"name": f"tokens-{k:06d}.tar"}) for k in range(shards)]
    for entry in entries[1:]:
        (folder / entry.name).hardlink_to(folder / first.name)
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest.model_copy(update={"shards": tuple(entries)})))


def milliseconds(since: float) -> float:
    return 1000 * (time.perf_counter() - since)


def measure(folder: Path, repeats: int) -> dict[str, object]:
    opened, first, resumed = [], [], []
    options = LoaderOptions(labels=False)
    state = b""
    for _ in range(repeats):
        started = time.perf_counter()
        loader = TokenLoader(folder, global_batch=BATCH, seed=0, options=options)
        opened.append(milliseconds(started))
        started = time.perf_counter()
        loader.batch(0, 0, 64)
        first.append(milliseconds(started))
        state = loader.state(loader.schedule.steps_per_epoch // 2).to_json().encode()
        loader.close()
        loader = TokenLoader(folder, global_batch=BATCH, seed=0, options=options)
        started = time.perf_counter()
        step = loader.resume(LoaderState(**json.loads(state)))
        loader.batch(step, 0, 64)
        resumed.append(milliseconds(started))
        loader.close()
    return {
        "samples": loader.manifest.rows, "shards": len(loader.manifest.shards), "state_bytes": len(state),
        "read_manifest_ms": round(statistics.median(opened), 1), "first_batch_ms": round(statistics.median(first), 1),
        "resume_at_half_ms": round(statistics.median(resumed), 1),
    }  # fmt: skip


def memory(folder: Path, epochs: int) -> dict[str, object]:
    """Resident memory without file pages, after each epoch."""
    loader = TokenLoader(folder, global_batch=BATCH, seed=0, options=LoaderOptions(labels=False))
    rows = []
    for epoch in range(epochs):
        for step in range(loader.schedule.steps_per_epoch):
            loader.batch(epoch * loader.schedule.steps_per_epoch + step, 0, BATCH)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                rows.append(round(int(line.split()[1]) / 1024, 1))
    loader.close()
    return {"epochs": epochs, "samples": loader.manifest.rows, "anonymous_mib_after_each": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"python": platform.python_version(), "numpy": np.__version__, "cores": cores}))
    for shards in (1281, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), min(shards, 60_000))  # a file has at most 65,000 names
            if shards > 60_000:
                many(Path(folder), shards)
            print(json.dumps(measure(Path(folder), options.repeats)), flush=True)
            if shards == 1281:
                print(json.dumps(memory(Path(folder), 10)), flush=True)
    print(json.dumps({"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))


def many(folder: Path, shards: int) -> None:
    """Further names, linked to a copy of the shard."""
    from data_pipeline.dataset import read_manifest

    manifest = read_manifest(folder)
    copy = folder / f"tokens-{60_000:06d}.tar"
    copy.write_bytes((folder / manifest.shards[0].name).read_bytes())
    entries = list(manifest.shards)
    for k in range(60_000, shards):
        entries.append(manifest.shards[0].model_copy(update={"name": f"tokens-{k:06d}.tar"}))
        if k > 60_000:
            (folder / entries[-1].name).hardlink_to(copy)
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest.model_copy(update={"shards": tuple(entries)})))


if __name__ == "__main__":
    main()
