"""Checks every byte of a finished data set against its manifest, and every row against its
rules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import numpy as np
import xxhash

from data_pipeline.sharding.plan import read_plan
from data_pipeline.sharding.quarantine import Totals
from data_pipeline.shards.format import numbers, row_problem, shard_records
from data_pipeline.shards.manifest import Manifest, ShardEntry
from data_pipeline.storage import CHUNK, NoRegularFile, ObjectMissing, Store, TooShort

_READERS = 4  # shards read at a time


class ShardCheck(NamedTuple):
    """What was found in a shard. keys: the images of its rows, as indices in the plan. problems:
    empty if the shard is sound."""

    name: str
    keys: list[int]
    problems: list[str]


def check_shard(store: Store, manifest: Manifest, entry: ShardEntry) -> ShardCheck:
    """Check one shard. It is read in pieces of whole rows, so that what is stored under its name
    may be of any size."""
    sha256, xxh3, size, rows = hashlib.sha256(), xxhash.xxh3_128(), 0, 0
    keys: list[int] = []
    problems: list[str] = []
    rows_a_piece = max(1, CHUNK // manifest.stride)
    try:
        for piece in _pieces(store, entry, rows_a_piece * manifest.stride):
            size += len(piece)
            sha256.update(piece)
            xxh3.update(piece)
            whole = min(entry.rows - rows, len(piece) // manifest.stride)
            records = shard_records(np.frombuffer(piece, np.uint8), whole, manifest.layout)
            rows += whole
            problem = row_problem(records, manifest.codebook_size, len(manifest.classes))
            problems += [problem] if problem and problem not in problems else []
            with suppress(ValueError):  # `row_problem` has reported it
                keys += numbers(records["index"]).tolist()
    except NoRegularFile as error:
        return ShardCheck(entry.name, [], [error.reason])
    except ObjectMissing:
        return ShardCheck(entry.name, [], ["is missing"])
    if size != entry.bytes:
        stored = f"{size}" if size < entry.bytes else f"more than {entry.bytes}"
        return ShardCheck(entry.name, [], [f"has {stored} bytes instead of {entry.bytes}"])
    if sha256.hexdigest() != entry.sha256:
        problems.append("does not match its sha256")
    if xxh3.hexdigest() != entry.xxh3:
        problems.append("does not match its xxh3")
    if keys != sorted(set(keys)):
        problems.append("has rows out of order or twice")
    return ShardCheck(entry.name, keys, problems)


def _pieces(store: Store, entry: ShardEntry, size: int) -> Iterator[bytes]:
    """Yield a shard's bytes, and one more if it has more than it should."""
    for start in range(0, entry.bytes + 1, size):
        try:
            yield store.read(entry.name, start, min(size, entry.bytes + 1 - start))
        except TooShort as short:
            yield short.content
            return


def verify(store: Store, manifest: Manifest) -> Iterator[ShardCheck]:
    """Check every shard, in order. An image that also lies in an earlier shard is a problem of the
    later one."""
    last = -1
    with ThreadPoolExecutor(_READERS) as pool:
        remaining = iter(manifest.shards)
        waiting = [
            pool.submit(check_shard, store, manifest, e) for e in islice(remaining, _READERS)
        ]
        while waiting:
            check = waiting.pop(0).result()
            if (entry := next(remaining, None)) is not None:
                waiting.append(pool.submit(check_shard, store, manifest, entry))
            if check.keys and check.keys[0] <= last:
                check.problems.append("repeats images of an earlier shard")
            last = max([last, *check.keys[-1:]])
            yield check


def totals_of(store: Store, manifest: Manifest) -> Totals | None:
    """Say what became of the planned images; None if no plan lies beside the data set, as in a copy
    without it. Raises DataError for a plan that is not readable."""
    try:
        plan = read_plan(store)
    except ObjectMissing:
        return None
    return Totals(plan.images, manifest.rows, len(manifest.quarantined))
