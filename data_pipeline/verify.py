"""Check every byte of a finished data set against its manifest, and every row against its rules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import xxhash

from data_pipeline.dataset import Manifest, ShardEntry
from data_pipeline.plan import read_plan
from data_pipeline.quarantine import Totals
from data_pipeline.shards import END, shard_records
from data_pipeline.storage import ObjectMissing, Store

_READERS = 4  # whole shards held at a time


class ShardCheck(NamedTuple):
    """keys: pictures of the rows. problems: nothing where the shard is sound."""

    name: str
    keys: list[int]
    problems: list[str]


def check_shard(store: Store, manifest: Manifest, entry: ShardEntry) -> ShardCheck:
    try:
        content = store.read(entry.name)
    except ObjectMissing:
        return ShardCheck(entry.name, [], ["is missing"])
    problems = []
    if len(content) != entry.bytes:
        problems.append(f"has {len(content)} bytes instead of {entry.bytes}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        problems.append("does not match its sha256")
    if xxhash.xxh3_128_hexdigest(content) != entry.xxh3:
        problems.append("does not match its xxh3")
    if len(content) != entry.rows * manifest.stride + len(END):
        return ShardCheck(entry.name, [], [*problems, f"does not hold {entry.rows} rows"])
    records = shard_records(np.frombuffer(content, np.uint8), entry.rows, manifest.layout)
    keys: list[int] = []
    try:
        keys = [int(key) for key in records["index"]]
        labels = records["label"].astype(np.int64)
        if int(records["tokens"].max()) >= manifest.codebook_size:
            problems.append(f"has tokens beyond the codebook ({manifest.codebook_size})")
        if int(labels.max()) >= len(manifest.classes) or int(labels.min()) < 0:
            problems.append(f"has labels beyond the {len(manifest.classes)} classes")
    except ValueError:
        problems.append("has keys or labels that are no numbers")
    if keys != sorted(set(keys)):
        problems.append("has rows out of order or twice")
    return ShardCheck(entry.name, keys, problems)


def verify(store: Store, manifest: Manifest) -> Iterator[ShardCheck]:
    """Every shard in order. A picture that also lies in an earlier shard is a problem of the later one."""
    last = -1
    with ThreadPoolExecutor(_READERS) as pool:
        remaining = iter(manifest.shards)
        waiting = [pool.submit(check_shard, store, manifest, e) for e in islice(remaining, _READERS)]
        while waiting:
            check = waiting.pop(0).result()
            if (entry := next(remaining, None)) is not None:
                waiting.append(pool.submit(check_shard, store, manifest, entry))
            if check.keys and check.keys[0] <= last:
                check.problems.append("repeats pictures of an earlier shard")
            last = max([last, *check.keys[-1:]])
            yield check


def totals(store: Store, manifest: Manifest) -> Totals | None:
    """What became of the planned pictures; None where no plan lies beside the data set, as in a copy without it.

    Raises DataError for a plan that is not readable.
    """
    try:
        plan = read_plan(store)
    except ObjectMissing:
        return None
    return Totals(plan.pictures, manifest.rows, len(manifest.quarantined))
