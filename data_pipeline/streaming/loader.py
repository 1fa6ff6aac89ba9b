"""Batches of token data sets. Batch b of a run holds the same samples, in the same order, on any
number of ranks.

A rank reads its slices of the global batch. A loader has no state: a run that goes on needs only
its step.

    step, offset --> sample index --> (epoch, window, position) --> (shard, row, view)
                     mixture.py       epochs.py, windows.py         order.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import numbers
from data_pipeline.shards.manifest import Manifest, read_fingerprinted
from data_pipeline.storage import LocalStore, open_store
from data_pipeline.streaming.epochs import EpochSchedule, Tail, epoch_schedule
from data_pipeline.streaming.fetch import Fetcher, Incident
from data_pipeline.streaming.mixture import Mixture
from data_pipeline.streaming.order import SampleOrder, stripes_of
from data_pipeline.streaming.shard_cache import ShardCache, Shards
from data_pipeline.streaming.windows import OnBadShard, Samples, SampleStream, joined
from model.errors import ConfigError, DataError


class Batch(NamedTuple):
    """A slice of a global batch.

    ids: uint16 (B, L). labels: int64 (B,), or (0,) if they are not read. start: the global sample
    index of the first sample; the rest follow it. weights: float32 (B,), 0 for rows of quarantined
    shards and for padding; None if all are 1.
    """

    ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    start: int
    weights: NDArray[np.float32] | None = None


class SampleLocation(NamedTuple):
    """Where a sample lies: its row and view in a shard of a data set (a url), and the epoch of that
    data set."""

    dataset: str
    epoch: int
    shard: str
    row: int
    view: int


@dataclass(frozen=True)
class LoaderOptions:
    """How data are read. Only `window`, `stripes` and `tail` change the order.

    labels: whether labels are read; pre-training needs none. cache: a folder for the shards of
    remote data sets, which all ranks of a host share; without it, shards are kept in memory.
    on_bad_shard: what happens to a shard that stays damaged. retry_seconds, hedge_after: see
    `Fetcher`.
    """

    window: int = 16
    stripes: int = 1
    tail: Tail = "drop"
    labels: bool = True
    cache: Path | None = None
    cache_bytes: int = 200 * 2**30
    on_bad_shard: OnBadShard = "stop"
    retry_seconds: float = 600.0
    hedge_after: float = 5.0


class TokenLoader:
    """Random access to the batches of a run; fast if they are read in order.

    folder: a data set (a folder or a url), or several with their weights, which are mixed.
    tokenizer: the fingerprint of the tokenizer that must have made them; None checks nothing.
    incident: told of every fault, also of those that passed. Raises DataError for a data set that
    is missing, unfinished, or made by another tokenizer; ConfigError for a cache on a file system
    without working locks.
    """

    def __init__(
        self,
        folder: Path | str | list[tuple[str, float]],
        *,
        global_batch: int,
        seed: int,
        tokenizer: str | None = None,
        options: LoaderOptions | None = None,
        incident: Incident = lambda record: None,
    ) -> None:
        self.options = o = options or LoaderOptions()
        weighted = folder if isinstance(folder, list) else [(str(folder), 1.0)]
        self.seed, self.global_batch = seed, global_batch
        self._fetcher = fetcher = Fetcher(
            hedge_after=o.hedge_after, retry_seconds=o.retry_seconds, incident=incident
        )
        cache = ShardCache(o.cache, o.cache_bytes, incident) if o.cache else None
        self.shards = [
            self._open(url, tokenizer, cache, fetcher, 2 * o.window) for url, _ in weighted
        ]
        if cache is not None and not all(
            isinstance(shards.store, LocalStore) for shards in self.shards
        ):
            cache.check()
        self.manifest: Manifest = self.shards[0].manifest
        self._check_alike()
        self._mixture: Mixture | None = None
        if len(weighted) > 1:
            self._mixture = Mixture([weight for _, weight in weighted], seed)
            self.schedule, self._streams = self._mixed_streams(incident)
        else:
            self.schedule, self._streams = self._striped_streams(incident)

    def _mixed_streams(self, incident: Incident) -> tuple[EpochSchedule, list[SampleStream]]:
        """Return the schedule, and one stream for each data set, which goes through its epochs at
        its own pace."""
        o = self.options
        if o.stripes > 1:
            raise ConfigError(
                "data.stripes works with one data set, not with a mixture; leave it at 1"
            )
        rows = sum(shards.manifest.rows for shards in self.shards)
        orders = [
            SampleOrder(
                _rows(shards.manifest), self.seed, window=o.window, name=f"/{i}" if i else ""
            )
            for i, shards in enumerate(self.shards)
        ]
        streams = [
            self._stream(shards, order, order.samples, incident)
            for shards, order in zip(self.shards, orders, strict=True)
        ]
        return epoch_schedule(rows, self.global_batch), streams

    def _striped_streams(self, incident: Incident) -> tuple[EpochSchedule, list[SampleStream]]:
        """Return the schedule, and one stream for each stripe of the data set; without stripes
        there is one."""
        o, counts = self.options, _rows(self.manifest)
        if self.global_batch % o.stripes:
            raise ConfigError(
                f"global_batch = {self.global_batch} is no multiple of data.stripes = {o.stripes}"
            )
        stripes = stripes_of(len(counts), o.stripes, self.seed) if o.stripes > 1 else [None]
        orders = [
            SampleOrder(
                counts, self.seed, window=o.window, numbers=numbers, name=f"/{i}" if i else ""
            )
            for i, numbers in enumerate(stripes)
        ]
        samples = self.manifest.rows
        if o.stripes > 1:  # an epoch has as many steps in each stripe
            sizes = [order.samples for order in orders]
            samples = o.stripes * (max if o.tail == "pad" else min)(sizes)
        schedule = epoch_schedule(samples, self.global_batch, o.tail)
        per_epoch = schedule.steps_per_epoch * self.global_batch // o.stripes
        streams = [self._stream(self.shards[0], order, per_epoch, incident) for order in orders]
        return schedule, streams

    def _stream(
        self, shards: Shards, order: SampleOrder, per_epoch: int, incident: Incident
    ) -> SampleStream:
        return SampleStream(
            shards,
            order,
            per_epoch=per_epoch,
            on_bad=self.options.on_bad_shard,
            labelled=self.options.labels,
            incident=incident,
        )

    @staticmethod
    def _open(
        url: str, tokenizer: str | None, cache: ShardCache | None, fetcher: Fetcher, keep: int
    ) -> Shards:
        store = open_store(url, closed=True)
        manifest, fingerprint = read_fingerprinted(store)
        if tokenizer is not None and tokenizer != manifest.tokenizer:
            raise DataError(
                f"{url} was made by another tokenizer ({manifest.tokenizer[:12]}) than the "
                f"configured one ({tokenizer[:12]}); make the tokens again with `addp tokenize`, "
                "or configure their tokenizer"
            )
        return Shards(
            store, manifest, fingerprint=fingerprint, cache=cache, fetcher=fetcher, keep=keep
        )

    def _check_alike(self) -> None:
        first = self.manifest
        for shards in self.shards[1:]:
            other = shards.manifest
            if (other.tokenizer, other.tokens, other.codebook_size) != (
                first.tokenizer,
                first.tokens,
                first.codebook_size,
            ):
                raise DataError(
                    f"{shards.store.url} was made by another tokenizer than "
                    f"{self.shards[0].store.url}"
                )

    def batch(self, step: int, offset: int, count: int) -> Batch:
        """Return the samples offset .. offset+count-1 of a step's global batch. Raises ShardDamaged
        and StorageError."""
        assert offset >= 0 and offset + count <= self.global_batch, (
            offset,
            count,
            self.global_batch,
        )
        start = step * self.global_batch + offset
        samples = self._mixed(start, count) if self._mixture else self._striped(step, offset, count)
        weights = (
            None
            if samples.sound is None or samples.sound.all()
            else samples.sound.astype(np.float32)
        )
        return Batch(samples.ids, samples.labels, start, weights)

    def _striped(self, step: int, offset: int, count: int) -> Samples:
        share = self.global_batch // len(self._streams)  # what each stripe gives to a global batch
        pieces = []
        while count:
            stripe, inside = divmod(offset, share)
            taken = min(count, share - inside)
            pieces.append(self._streams[stripe].read(step * share + inside, taken))
            offset, count = offset + taken, count - taken
        return pieces[0] if len(pieces) == 1 else joined(pieces)

    def _mixed(self, start: int, count: int) -> Samples:
        assert self._mixture
        slots = self._mixture.locate(start, count)
        ids = np.empty((count, self.manifest.tokens), np.uint16)
        labels = np.empty(count if self.options.labels else 0, np.int64)
        sound = np.ones(count, np.bool_)
        for d, stream in enumerate(self._streams):
            at = np.nonzero(slots.dataset == d)[0]
            if len(at):  # they follow each other in that data set's own sequence
                samples = stream.read(int(slots.sample_index[at[0]]), len(at))
                ids[at] = samples.ids
                if self.options.labels:
                    labels[at] = samples.labels
                sound[at] = True if samples.sound is None else samples.sound
        return Samples(ids, labels, sound)

    def where(self, step: int, offset: int) -> SampleLocation | None:
        """Say where a sample of a step's global batch lies; None for padding."""
        if self._mixture:
            slots = self._mixture.locate(step * self.global_batch + offset, 1)
            dataset, index = int(slots.dataset[0]), int(slots.sample_index[0])
            shards, located = self.shards[dataset], self._streams[dataset].locate(index)
        else:
            share = self.global_batch // len(self._streams)
            stripe, inside = divmod(offset, share)
            shards, located = self.shards[0], self._streams[stripe].locate(step * share + inside)
        if located is None:
            return None
        epoch, shard, row, view = located
        name = shards.manifest.shards[shard].name
        return SampleLocation(shards.store.url, epoch, name, row, view)

    @property
    def fingerprint(self) -> str:
        """Return one fingerprint of all data that are read."""
        return "+".join(shards.fingerprint for shards in self.shards)

    @property
    def order_options(self) -> dict[str, Any]:
        """Return the options that the order depends on; a run that goes on must keep them."""
        mixture = {"mixture": self._mixture.counts.tolist()} if self._mixture else {}
        return {
            "window": self.options.window,
            "stripes": self.options.stripes,
            "tail": self.options.tail,
            **mixture,
        }

    def code_frequencies(self, shards: int = 4) -> NDArray[np.float64]:
        """Return the share of each code among the tokens of the first shards, (K,), with add-one
        smoothing."""
        k = self.manifest.codebook_size
        counts = np.ones(k)
        for number in range(min(shards, len(self.manifest.shards))):
            counts += np.bincount(
                self.shards[0].open(number).records["tokens"].ravel(), minlength=k
            )
        return counts / counts.sum()

    def all_tokens(self) -> NDArray[np.uint16]:
        """Return the first view of every sample in stored order, (N, L), for evaluation."""
        shards = range(len(self.manifest.shards))
        return np.concatenate([self.shards[0].open(k).records["tokens"][:, 0] for k in shards])

    def all_labels(self) -> NDArray[np.int64]:
        """Return the labels of these samples, (N,)."""
        shards = range(len(self.manifest.shards))
        return np.concatenate([numbers(self.shards[0].open(k).records["label"]) for k in shards])

    def close(self) -> None:
        """End the threads and drop what they were fetching."""
        self._fetcher.close()
        for stream in self._streams:
            stream.close()


def _rows(manifest: Manifest) -> NDArray[np.int64]:
    """Return the number of rows of each shard."""
    return np.array([shard.rows for shard in manifest.shards], np.int64)
