"""Measures the time until a run's first batch, at its start and when it goes on at half of an
epoch, and what a checkpoint holds of the data.

    python -m benchmarks.streaming_resume
    python -m benchmarks.streaming_resume --steps 312    # only what the data of a step cost a rank

The path is a run's: the objective opens the data set, and `Prefetch` brings the micro batch.
Shards are hard links to one file, so that data sets of 1.28 and 100 million samples fit on a
laptop; reading them is real.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.shards.manifest import MANIFEST, manifest_bytes
from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from data_pipeline.streaming.order import SampleOrder
from model.masking import denoising_masks
from tests.token_sets import write_tokens
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.mage import MageObjective
from trainer.prefetch import Prefetch
from trainer.resilience.state import data_step

ROWS, BATCH, MICRO = 1000, 4096, 64


def make(folder: Path, shards: int) -> None:
    """`shards` names of one shard of 1,000 rows, V = 10, L = 256."""
    manifest = write_tokens(LocalStore(folder), [ROWS], views=10, length=256)
    first = manifest.shards[0]
    entries = [first.model_copy(update={"name": f"tokens-{k:06d}.tar"}) for k in range(shards)]
    for entry in entries[1:]:
        (folder / entry.name).hardlink_to(folder / first.name)
    (folder / MANIFEST).write_bytes(
        manifest_bytes(manifest.model_copy(update={"shards": tuple(entries)}))
    )


def milliseconds(since: float) -> float:
    return 1000 * (time.perf_counter() - since)


class Times(NamedTuple):
    """Milliseconds until the data set is open, until the first batch is there, and of the CPU until
    then."""

    opened: float
    batch: float
    batch_cpu: float


def start(config: RunConfig, step: int) -> Times:
    """Do what rank 0 of 64 does when its run goes on with a step: open the data set, and have the
    prefetching thread bring the first micro batch."""
    started = time.perf_counter()
    tokens = MageObjective(config)
    opened = milliseconds(started)
    started, before = time.perf_counter(), time.process_time()
    prefetch = Prefetch(tokens, rank=0, accumulation=1, micro=MICRO)
    prefetch.get([data_step([], step), data_step([], step + 1)])[0].result()
    times = Times(opened, milliseconds(started), 1000 * (time.process_time() - before))
    prefetch.close()
    tokens.close()
    return times


def measure(folder: Path, repeats: int) -> dict[str, object]:
    config = load_config(
        None,
        [
            "objective=mage",
            "predictor.sizes.size=tiny",
            f"data.tokens={folder}",
            f"batch.global_batch={BATCH}",
            f"batch.micro={MICRO}",
        ],
    )
    objective = MageObjective(config, fresh=True)
    run_identity, half = objective.identity(), objective.epochs.steps_per_epoch // 2
    objective.close()
    state = {
        "step": half,
        "skipped": [],
        **{key: run_identity[key] for key in ("data", "order", "seed", "global_batch")},
    }
    values: dict[str, object] = {
        "samples": objective.epochs.samples,
        "state_bytes": len(json.dumps(state)),
    }
    for name, step in (("start", 0), ("resume_at_half", half)):
        columns = zip(*(start(config, step) for _ in range(repeats)), strict=True)
        medians = Times(*(round(statistics.median(column), 1) for column in columns))
        values |= {f"{name}_{key}_ms": value for key, value in medians._asdict().items()}
    return values


def step_cost(folder: Path, steps: int) -> dict[str, object]:
    """Milliseconds of CPU time that the data of a step cost rank 0 of 32, with 128 samples of a
    global batch of 4,096, by part: means over so many steps, one after another, from the start of
    an epoch."""
    ranks, seed = 32, 0
    micro = BATCH // ranks
    loader = TokenLoader(folder, global_batch=BATCH, seed=seed, options=LoaderOptions(labels=False))
    order = SampleOrder([ROWS] * len(loader.manifest.shards), seed, window=loader.options.window)
    length = loader.manifest.tokens
    batches = {step: loader.batch(step, 0, micro) for step in (0, 1)}  # what is imported once

    def read(step: int) -> None:
        batches[step] = loader.batch(step, 0, micro)

    parts: dict[str, Callable[[int], object]] = {
        "order": lambda step: order.locate(0, step * BATCH, micro),
        "order_and_reading": read,
        "masks": lambda step: denoising_masks(
            seed, batches[step].start, batches[step].start, micro, length
        ),
        "ids_to_int64": lambda step: batches[step].ids.astype("int64"),
    }
    spent = {}
    for part, work in parts.items():
        before = time.process_time()
        for step in range(steps):
            work(step)
        spent[part] = 1000 * (time.process_time() - before) / steps
    loader.close()
    spent["reading"] = spent.pop("order_and_reading") - spent["order"]
    total = sum(spent.values())
    rounded = {f"{part}_cpu_ms": round(value, 3) for part, value in spent.items()}
    return {"steps": steps, "micro": micro, **rounded, "all_cpu_ms": round(total, 3)}


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, help="measure the data of so many steps, at most 312")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(
        json.dumps({"python": platform.python_version(), "numpy": np.__version__, "cores": cores})
    )
    if options.steps:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), 1281)
            print(json.dumps(step_cost(Path(folder), min(options.steps, 1281 * ROWS // BATCH))))
        return
    for shards in (1281, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), min(shards, 60_000))  # a file has at most 65,000 names
            if shards > 60_000:
                many(Path(folder), shards)
            print(json.dumps(measure(Path(folder), options.repeats)), flush=True)
            if shards == 1281:
                print(json.dumps(memory(Path(folder), 10)), flush=True)
    print(
        json.dumps({"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)})
    )


def many(folder: Path, shards: int) -> None:
    """Further names, linked to a copy of the shard."""
    from data_pipeline.shards.manifest import read_manifest

    manifest = read_manifest(folder)
    copy = folder / f"tokens-{60_000:06d}.tar"
    copy.write_bytes((folder / manifest.shards[0].name).read_bytes())
    entries = list(manifest.shards)
    for k in range(60_000, shards):
        entries.append(manifest.shards[0].model_copy(update={"name": f"tokens-{k:06d}.tar"}))
        if k > 60_000:
            (folder / entries[-1].name).hardlink_to(copy)
    (folder / MANIFEST).write_bytes(
        manifest_bytes(manifest.model_copy(update={"shards": tuple(entries)}))
    )


if __name__ == "__main__":
    main()
