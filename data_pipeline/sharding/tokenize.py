"""Images -> V seeded views -> token shards: the work of a sharding job on one machine.

    plan's list -> threads: read, decode, V views -> batches -> encoder -> shard -> store, receipt
                   (ahead, across shards)            (full)                (in the background)

Threads read images and make views ahead of the encoder, across the borders of shards, and finished
shards are stored in the background, so that the encoder does not wait. A shard is a pure function
of the plan: any worker makes the same bytes.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.images.images import BadImage, ImageEntry, read_image
from data_pipeline.images.location import images_store
from data_pipeline.images.streamed import gathered
from data_pipeline.images.view_recipe import ViewRecipe
from data_pipeline.images.views import make_view
from data_pipeline.sharding.encoder import BatchFiller, TokenEncoder
from data_pipeline.sharding.options import BAD_LIMIT, JobOptions, OnBad
from data_pipeline.sharding.plan import Plan, PlanRecipe, read_plan, shard_images
from data_pipeline.sharding.quarantine import NOTHING, BadCount, Totals, is_absent
from data_pipeline.sharding.receipts import ShardReceipt, commit, layout_of, unclaimed
from data_pipeline.sharding.source_check import SourceCheck
from data_pipeline.shards.format import Sample, write_shard
from data_pipeline.shards.manifest import Quarantined
from data_pipeline.storage import Store, open_store
from data_pipeline.storage.urls import UrlStore
from model.device import usable_device
from model.errors import DataError
from model.vq import VQTokenizer
from model.weights import fingerprint, load_tokenizer


class JobSettings(NamedTuple):
    """A sharding job as it can be sent to another machine.

    out: the data set. tokenizer: its weights file. source: where the images lie now, if not where
    they were planned. before: the counts of the shards that were made when the job began.
    """

    out: str
    tokenizer: str
    source: str | None = None
    options: JobOptions = JobOptions()
    before: Totals = NOTHING

    def open(self) -> TokenizeJob:
        """Read the plan, load the tokenizer, and reach both stores. Raises ADDPError if one of them
        does not fit, StorageError if the source is not there."""
        options, device = self.options, str(self.options.device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        usable_device(device)
        out = open_store(self.out, closed=True)
        plan = read_plan(out)
        network = load_tokenizer(self.tokenizer)
        check_tokenizer(network, plan)
        encoder = TokenEncoder(
            network,
            device=device,
            batch=options.batch,
            precision=plan.recipe.precision,
            compiled=options.compile,
        )
        job = TokenizeJob(
            out,
            plan,
            self._images(plan),
            encoder,
            threads=options.threads,
            on_bad=options.on_bad_image,
            bad_limit=options.bad_limit,
            before=self.before,
        )
        job.check.before_work()
        return job

    def _images(self, plan: Plan) -> Store:
        """Return the store of the plan's images. Only a source that was given may be a command."""
        given = self.source is not None
        store = images_store(self.source or plan.source, plan.objects, commands=given)
        if isinstance(store, UrlStore):
            store.expect(dict(zip(plan.objects, plan.versions, strict=False)), here=not given)
        return store


class Viewed(NamedTuple):
    """An image of a shard, its index in the plan, and its views, uint8 (V, H, W, 3), or why it has
    none."""

    shard: int
    image_index: int
    entry: ImageEntry
    views: NDArray[np.uint8] | Quarantined


def plan_recipe(tokenizer: VQTokenizer, views: ViewRecipe, **options: object) -> PlanRecipe:
    """Return the recipe of a data set of these views by this tokenizer; options: further fields of
    `PlanRecipe`. Raises DataError if the views do not fit the tokenizer."""
    config = tokenizer.config
    if views.size != config.image_size:
        raise DataError(
            f"views of {views.size} px do not fit a tokenizer for {config.image_size} px"
        )
    return PlanRecipe.model_validate(
        {
            "views": views,
            "tokenizer": fingerprint(tokenizer),
            "codebook_size": config.codebook_size,
            "tokens": config.tokens,
            **options,
        }
    )


def check_tokenizer(tokenizer: VQTokenizer, plan: Plan) -> None:
    """Raise DataError if the plan was made for other weights."""
    if (given := fingerprint(tokenizer)) != plan.recipe.tokenizer:
        raise DataError(
            f"the plan was made for another tokenizer ({plan.recipe.tokenizer[:12]}) than the one "
            f"given ({given[:12]}); give the one that it was planned with, or plan anew in an "
            "empty folder"
        )


class TokenizeJob:
    """Makes shards of a plan.

    out: the store of the plan and the shards. source: the store that the plan's images lie in.
    encoder: must hold the plan's tokenizer, in the plan's precision (`check_tokenizer`). threads:
    how many read and decode images; one a core if None. on_bad: whether an unreadable image is
    quarantined or ends the job. bad_limit: share of unreadable images above which the job stops.
    before: the counts of the shards that were made when it began.
    """

    def __init__(
        self,
        out: Store,
        plan: Plan,
        source: Store,
        encoder: TokenEncoder,
        *,
        threads: int | None = None,
        on_bad: OnBad = "quarantine",
        bad_limit: float = BAD_LIMIT,
        before: Totals = NOTHING,
    ) -> None:
        self.out, self.plan, self.source, self.encoder = out, plan, source, encoder
        self.threads = threads or len(os.sched_getaffinity(0))
        self.on_bad = on_bad
        self.check = SourceCheck(out, plan, source)
        self._bad = BadCount(plan, bad_limit, before)

    def run(
        self, shards: Iterable[int], progress: Callable[[int], None] = lambda images: None
    ) -> Iterator[ShardReceipt]:
        """Make and store these shards, and yield each one's receipt once it is stored.

        progress: called with the number of images that were just encoded. Raises DataError for too
        many unreadable images (for the first, with on_bad "fail"), and StorageError if reading or
        storing fails for good, or the source goes away; shards stored until then stay.
        """
        storing: Future[ShardReceipt] | None = None
        with (
            ThreadPoolExecutor(self.threads, "views") as readers,
            ThreadPoolExecutor(1, "store") as writer,
        ):
            stream = self._viewed(shards, readers)
            for shard, images in itertools.groupby(stream, lambda viewed: viewed.shard):
                content, bad = self._make(images, progress)
                self._bad.add(shard, bad)
                if storing is not None:
                    yield storing.result()
                storing = writer.submit(commit, self.out, self.plan, shard, content, bad)
            if storing is not None:
                yield storing.result()

    def _viewed(self, shards: Iterable[int], readers: ThreadPoolExecutor) -> Iterator[Viewed]:
        """Yield all images of the shards in order; threads work ahead by at most two batches and
        one image each."""
        ahead = self.threads + -(-2 * self.encoder.batch // self.plan.recipe.views.views)
        waiting: deque[Future[Viewed]] = deque()
        listed = (item for shard in shards for item in self._listed(shard))
        try:
            for item in listed:
                waiting.append(readers.submit(self._view, *item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _listed(self, shard: int) -> Iterator[tuple[int, int, ImageEntry, Store]]:
        """Yield the images of a shard, and what they are read from."""
        images = shard_images(self.out, self.plan, shard)
        source = gathered(self.source, (entry for _, entry in images))
        yield from ((shard, index, entry, source) for index, entry in images)

    def _view(self, shard: int, index: int, entry: ImageEntry, source: Store) -> Viewed:
        recipe = self.plan.recipe.views
        try:
            image = read_image(source, entry)
        except BadImage as error:
            bad = Quarantined(id=entry.id, reason=error.reason)
            if self.on_bad == "fail":
                self.check.confirm([entry] if is_absent(bad) else [], None)
                raise
            return Viewed(shard, index, entry, bad)
        views = np.stack([make_view(image, entry.id, view, recipe) for view in range(recipe.views)])
        return Viewed(shard, index, entry, views)

    def _make(
        self, images: Iterable[Viewed], progress: Callable[[int], None]
    ) -> tuple[bytes, tuple[Quarantined, ...]]:
        """Return one shard's bytes (none if no image can be read), and its unreadable images."""
        good: list[Viewed] = []
        bad: list[Quarantined] = []
        absent: list[ImageEntry] = []
        filler = BatchFiller(self.encoder)
        for viewed in images:
            if isinstance(viewed.views, Quarantined):
                bad.append(viewed.views)
                absent += [viewed.entry] if is_absent(viewed.views) else []
            else:
                filler.add(viewed.views)
                good.append(viewed._replace(views=viewed.views[:0]))  # the pixels are done with
            progress(1)
        self.check.confirm(absent, good[-1].entry if good else None)
        if not good:
            return b"", tuple(bad)
        layout = layout_of(self.plan)
        tokens = filler.tokens().reshape(-1, layout.views, layout.tokens)
        file = BytesIO()
        write_shard(
            file,
            (Sample(v.image_index, v.entry.label, t) for v, t in zip(good, tokens, strict=True)),
            layout,
        )
        return file.getvalue(), tuple(bad)


def run_locally(
    settings: JobSettings, shards: Sequence[int], progress: Callable[[int], None]
) -> Iterator[ShardReceipt]:
    """Make these shards in this process, except those that other workers finish meanwhile, and
    yield their receipts. Raises as `TokenizeJob.run`."""
    if not shards:
        return
    job = settings.open()
    start = uuid.uuid4().int % len(shards)  # workers of one plan begin at different shards
    yield from job.run(unclaimed(job.out, shards, start), progress)
