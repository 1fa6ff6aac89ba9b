"""Batches of token data sets. Batch b of a run holds the same samples, in the same order, on any
number of ranks.

A rank reads its slices of the global batch. A loader has no state: what a run goes on with is its
step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.manifest import Manifest, read_fingerprinted
from data_pipeline.storage import LocalStore, open_store
from data_pipeline.streaming.epochs import Tail, epoch_schedule
from data_pipeline.streaming.fetch import Fetcher, Incident
from data_pipeline.streaming.mixture import Mixture
from data_pipeline.streaming.order import SampleOrder, stripes_of
from data_pipeline.streaming.shard_cache import ShardCache, Shards
from data_pipeline.streaming.windows import OnBadShard, Samples, SampleStream, joined
from model.errors import ConfigError, DataError


class Batch(NamedTuple):
    """ids: uint16 (B, L). labels: int64 (B,), or (0,) where they are not read.

    start: global sample index of the first; the rest follow.
    weights: float32 (B,), 0 for rows of quarantined shards and for padding; None where all are 1.
    """

    ids: NDArray[np.uint16]
    labels: NDArray[np.int64]
    start: int
    weights: NDArray[np.float32] | None = None


class Place(NamedTuple):
    """Where a sample lies: row and view in a shard of a data set, in which epoch of it."""

    dataset: str
    epoch: int
    shard: str
    row: int
    view: int


@dataclass(frozen=True)
class LoaderOptions:
    """How data are read; none of it but `window`, `stripes` and `tail` changes the order.

    labels: read them too; pre-training needs none.

    cache: folder for shards of remote data sets, shared by all ranks of a host (kept in memory when
    None). on_bad_shard: what a shard does that stays damaged. patience, hedge_after: see Fetcher.
    """

    window: int = 16
    stripes: int = 1
    tail: Tail = "drop"
    labels: bool = True
    cache: Path | None = None
    cache_bytes: int = 200 * 2**30
    on_bad_shard: OnBadShard = "stop"
    patience: float = 600.0
    hedge_after: float = 5.0


class TokenLoader:
    """Random access to the batches of a run, fast in order.

    folder: of the data set, or several with their weights, to be mixed. tokenizer: a fingerprint
    that they must have been made by (not checked when None). incident: told of every fault, also of
    those that passed. Raises DataError for a data set that is missing, unfinished, or of another
    tokenizer; ConfigError for a cache on a file system without working locks.
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
        places = folder if isinstance(folder, list) else [(str(folder), 1.0)]
        self.seed, self.global_batch = seed, global_batch
        self._fetcher = fetcher = Fetcher(
            hedge_after=o.hedge_after, patience=o.patience, incident=incident
        )
        cache = ShardCache(o.cache, o.cache_bytes, incident) if o.cache else None
        self.shards = [
            self._open(place, tokenizer, cache, fetcher, 2 * o.window) for place, _ in places
        ]
        if cache is not None and not all(
            isinstance(shards.store, LocalStore) for shards in self.shards
        ):
            cache.check()
        self.manifest: Manifest = self.shards[0].manifest
        self._check_alike()
        rows = sum(s.manifest.rows for s in self.shards)
        self._mixture = Mixture([weight for _, weight in places], seed) if len(places) > 1 else None
        self._streams: list[SampleStream] = []
        if self._mixture:
            if o.stripes > 1:
                raise ConfigError(
                    "data.stripes works with one data set, not with a mixture; leave it at 1"
                )
            self.schedule = epoch_schedule(rows, global_batch)
            for i, shards in enumerate(self.shards):
                order = SampleOrder(
                    _rows(shards.manifest), seed, o.window, name=f"/{i}" if i else ""
                )
                self._streams.append(
                    SampleStream(shards, order, order.samples, o.on_bad_shard, o.labels, incident)
                )
            return
        if global_batch % o.stripes:
            raise ConfigError(
                f"global_batch = {global_batch} is no multiple of data.stripes = {o.stripes}"
            )
        counts = _rows(self.manifest)
        parts = stripes_of(len(counts), o.stripes, seed) if o.stripes > 1 else [None]
        orders = [
            SampleOrder(counts, seed, o.window, part, f"/{i}" if i else "")
            for i, part in enumerate(parts)
        ]
        sizes = [order.samples for order in orders]
        even = (max if o.tail == "pad" else min)(sizes)  # an epoch has as many steps in each stripe
        self.schedule = epoch_schedule(
            rows if o.stripes == 1 else even * o.stripes, global_batch, o.tail
        )
        per_epoch = self.schedule.steps_per_epoch * global_batch // o.stripes
        self._streams = [
            SampleStream(self.shards[0], order, per_epoch, o.on_bad_shard, o.labels, incident)
            for order in orders
        ]

    @staticmethod
    def _open(
        place: str, tokenizer: str | None, cache: ShardCache | None, fetcher: Fetcher, keep: int
    ) -> Shards:
        store = open_store(place, closed=True)
        manifest, fingerprint = read_fingerprinted(store)
        if tokenizer is not None and tokenizer != manifest.tokenizer:
            raise DataError(
                f"{place} was made by another tokenizer ({manifest.tokenizer[:12]}) than the "
                f"configured one ({tokenizer[:12]}); make the tokens again with `addp tokenize`, "
                "or configure their tokenizer"
            )
        return Shards(store, manifest, fingerprint, cache, fetcher, keep)

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
        """Samples offset .. offset+count-1 of the global batch of a step."""
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
        share = self.global_batch // len(
            self._streams
        )  # of a global batch that comes from one stripe
        parts = []
        while count:
            stripe, inside = divmod(offset, share)
            taken = min(count, share - inside)
            parts.append(self._streams[stripe].read(step * share + inside, taken))
            offset, count = offset + taken, count - taken
        return parts[0] if len(parts) == 1 else joined(parts)

    def _mixed(self, start: int, count: int) -> Samples:
        assert self._mixture
        slots = self._mixture.locate(start, count)
        ids = np.empty((count, self.manifest.tokens), np.uint16)
        labels = np.empty(count if self.options.labels else 0, np.int64)
        sound = np.ones(count, np.bool_)
        for d, stream in enumerate(self._streams):
            at = np.nonzero(slots.dataset == d)[0]
            if len(at):  # a contiguous part of that set's own sequence
                part = stream.read(int(slots.place[at[0]]), len(at))
                ids[at] = part.ids
                if self.options.labels:
                    labels[at] = part.labels
                sound[at] = True if part.sound is None else part.sound
        return Samples(ids, labels, sound)

    def where(self, step: int, offset: int) -> Place | None:
        """Where one sample of a run lies; None for padding. For looking at what was in a batch."""
        start = step * self.global_batch + offset
        if self._mixture:
            slots = self._mixture.locate(start, 1)
            dataset, place = int(slots.dataset[0]), int(slots.place[0])
            found, shards = self._streams[dataset].locate(place), self.shards[dataset]
        else:
            share = self.global_batch // len(self._streams)
            stripe, inside = divmod(offset, share)
            found, shards = self._streams[stripe].locate(step * share + inside), self.shards[0]
        if found is None:
            return None
        epoch, shard, row, view = found
        return Place(shards.store.url, epoch, shards.manifest.shards[shard].name, row, view)

    @property
    def fingerprint(self) -> str:
        """Of all data that are read."""
        return "+".join(shards.fingerprint for shards in self.shards)

    @property
    def order_options(self) -> dict[str, Any]:
        """Options that the order depends on; a run that goes on must keep them."""
        mixture = {"mixture": self._mixture.counts.tolist()} if self._mixture else {}
        return {
            "window": self.options.window,
            "stripes": self.options.stripes,
            "tail": self.options.tail,
            **mixture,
        }

    def code_frequencies(self, shards: int = 4) -> NDArray[np.float64]:
        """Share of each code (K,) among the tokens of the first shards, add-one smoothed."""
        k = self.manifest.codebook_size
        counts = np.ones(k)
        for number in range(min(shards, len(self.manifest.shards))):
            counts += np.bincount(
                self.shards[0].open(number).records["tokens"].ravel(), minlength=k
            )
        return counts / counts.sum()

    def all_tokens(
        self, view: int = 0, labels: Collection[int] | None = None, limit: int | None = None
    ) -> Batch:
        """Samples in stored order, for evaluation: all, or those of some labels, or the first
        `limit` of these."""
        ids, found, total = [], [], 0
        for number in range(len(self.manifest.shards)):
            records = self.shards[0].open(number).records
            label = records["label"].astype(np.int64)
            chosen = (
                np.arange(len(label))
                if labels is None
                else np.nonzero(np.isin(label, list(labels)))[0]
            )
            if limit is not None:
                chosen = chosen[: limit - total]
            ids.append(records["tokens"][chosen, view])
            found.append(label[chosen])
            total += len(chosen)
            if limit is not None and total >= limit:
                break
        return Batch(np.concatenate(ids), np.concatenate(found), 0)

    def close(self) -> None:
        """End the threads; what they were fetching is dropped."""
        self._fetcher.close()
        for stream in self._streams:
            stream.close()


def _rows(manifest: Manifest) -> NDArray[np.int64]:
    return np.array([shard.rows for shard in manifest.shards], np.int64)
