"""Batches of a token data set. Batch b of the run holds the same samples on any number of ranks.

Global sample s = b * G + i lies in epoch s // per_epoch at position s % per_epoch; an epoch uses one view of each
picture, cycling. A rank takes its slice of the global batch, so the whole state of a loader is the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import Manifest, read_manifest
from data_pipeline.order import SampleOrder
from data_pipeline.shards import ShardReader
from model.errors import ConfigError, DataError


class Batch(NamedTuple):
    """ids: uint16 (B, L). labels: int64 (B,). start: global sample index of the first; the rest follow."""

    ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    start: int


class EpochSchedule(NamedTuple):
    """How steps map onto epochs. The tail of an epoch that fills no global batch is dropped."""

    samples: int
    global_batch: int

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.global_batch

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, position) of a step's first sample."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return epoch, step * self.global_batch


def epoch_schedule(samples: int, global_batch: int) -> EpochSchedule:
    """Raises ConfigError where not even one batch fits into an epoch."""
    if global_batch > samples:
        raise ConfigError(
            f"global_batch = {global_batch} is larger than the data set ({samples} samples); "
            f"use at most {samples}, or more pictures"
        )
    return EpochSchedule(samples, global_batch)


class TokenLoader:
    """Random access to the batches of a run.

    Raises DataError for a data set that is missing, unfinished, damaged or of another tokenizer than `tokenizer`
    (a fingerprint; not checked when None).
    """

    def __init__(
        self, folder: Path | str, *, global_batch: int, seed: int, window: int = 16, tokenizer: str | None = None
    ) -> None:
        self.manifest: Manifest = read_manifest(folder)
        if tokenizer is not None and tokenizer != self.manifest.tokenizer:
            raise DataError(
                f"{folder} was made by another tokenizer ({self.manifest.tokenizer[:12]}) than the configured one "
                f"({tokenizer[:12]}); make the tokens again with `addp tokenize`, or configure their tokenizer"
            )
        self.readers = [
            ShardReader(Path(folder) / shard.name, shard.rows, self.manifest.layout, shard.xxh3)
            for shard in self.manifest.shards
        ]
        self.schedule = epoch_schedule(self.manifest.rows, global_batch)
        self.order = SampleOrder([shard.rows for shard in self.manifest.shards], seed, window)

    def batch(self, step: int, offset: int, count: int) -> Batch:
        """Samples offset .. offset+count-1 of the global batch of a step."""
        epoch, position = self.schedule.locate(step)
        where = self.order.locate(epoch, position + offset, count)
        views = (where.row + epoch) % self.manifest.views.views  # each epoch the next view of every picture
        ids = np.empty((count, self.manifest.tokens), np.uint16)
        labels = np.empty(count, np.int64)
        for shard in np.unique(where.shard):
            at = np.nonzero(where.shard == shard)[0]
            ids[at] = self.readers[shard].tokens(where.row[at], views[at])
            labels[at] = self.readers[shard].labels(where.row[at])
        return Batch(ids, labels, step * self.schedule.global_batch + offset)

    def code_frequencies(self, shards: int = 4) -> NDArray[np.float64]:
        """Share of each code (K,) among the tokens of the first shards, add-one smoothed."""
        k = self.manifest.codebook_size
        counts = np.ones(k)
        for reader in self.readers[:shards]:
            counts += np.bincount(reader.records["tokens"].ravel(), minlength=k)
        return counts / counts.sum()

    def all_tokens(self, view: int = 0) -> Batch:
        """Every sample once, in stored order (for evaluation)."""
        parts = [(r.records["tokens"][:, view], r.records["label"].astype(np.int64)) for r in self.readers]
        return Batch(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), 0)
