"""What a benchmark is given: one checkpoint's networks, images and samples, and all ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from data_pipeline.images.location import locate
from data_pipeline.images.split import Split, of_split
from data_pipeline.images.streamed import gathered
from data_pipeline.progress import Progress
from model.addp import ADDP
from model.errors import ConfigError, DataError
from model.networks import Network
from model.vq import VQTokenizer
from trainer.checkpointing.format import Manifest
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.evaluation.contents import Annotations, Contents, Listing
from trainer.evaluation.crops import Chunk, Crop, Crops
from trainer.evaluation.kept_chunks import KeptChunks, read_ahead
from trainer.evaluation.measures.class_labels import labels_in
from trainer.evaluation.options import ResolvedOptions, SetOptions
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_classes import SampleClasses
from trainer.evaluation.sample_set import SampleSet
from trainer.evaluation.trained import Trained, frozen_tokenizer
from trainer.formats import Weights
from trainer.objectives.images import reading_threads

T = TypeVar("T")


class Checkpoint(NamedTuple):
    """One checkpoint of a run, loaded. weights: which of its two sets `network` holds."""

    step: int
    weights: Weights
    network: Network
    manifest: Manifest


class Task:
    """One checkpoint to be measured, by all ranks together.

    config: of the run. work: the folder for what is computed of this checkpoint. contents: listings
    of the data, which rank 0 alone has. settings: what the result of each benchmark depends on.
    tokenizer: a copy of the run's tokenizer on this machine, or None for the file that the run
    names.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        config: RunConfig,
        options: ResolvedOptions,
        collectives: Collectives,
        device: torch.device,
        work: Path,
        contents: Contents,
        settings: Mapping[str, Mapping[str, Any]],
        tokenizer: Path | None = None,
    ) -> None:
        self.config, self.options, self.work = config, options, work
        self.collectives, self.device = collectives, device
        self.network = checkpoint.network.to(device).eval()
        self._checkpoint, self._contents, self._tokenizer = checkpoint, contents, tokenizer
        self._settings = settings
        self._kept: list[KeptChunks] = []
        self._annotations: dict[tuple[str, str], Annotations] = {}
        self._sets = work / f"samples{suffix(checkpoint.weights)}"
        self._listings: dict[str, Listing] = {}
        self._crops: dict[tuple[str, Split, Crop], Crops] = {}
        self._computed: dict[Hashable, Any] = {}

    @cached_property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer that an ADDP run was trained with. Raises ConfigError or WeightsError."""
        expected = self._checkpoint.manifest.run_identity["frozen"].get("tokenizer")
        return frozen_tokenizer(self.config, self._tokenizer, expected).to(self.device)

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.config.geometry.image_size

    def crops(self, split: Split) -> Crops:
        """Training or held-out images, opened by all ranks together. Raises ADDPError."""
        images, apart = self._images, self.options.train_images
        if apart is None:
            return self._opened(images, split, "own")
        return self._opened(images if split == "val" else apart, "all", "own")

    def reference(self) -> Crops:
        """The real images that samples are compared with, opened by all ranks together.

        By the published protocol they are all of --images. Raises ADDPError.
        """
        if self.options.reference == "held-out":
            return self.crops("val")
        return self._opened(self._images, "all", "published")

    @property
    def _images(self) -> str:
        if self.options.images is None:
            raise ConfigError("this benchmark needs --images: class folders or WebDataset shards")
        return self.options.images

    def _opened(self, location: str, split: Split, crop: Crop) -> Crops:
        wanted = (location, split, crop)
        if wanted not in self._crops:
            listing = self._listing(location)
            images = tuple(of_split(listing.images, split, self.options.held_out))
            if not images:
                raise DataError(
                    f"the {split} split of {location} is empty; give more images, or another "
                    "--held-out"
                )
            self._crops[wanted] = Crops(
                gathered(locate(location).store, images),
                images,
                listing.classes,
                size=self.image_size,
                chunk=self.options.batch,
                crop=crop,
                threads=reading_threads(location),
            )
        return self._crops[wanted]

    def _listing(self, location: str) -> Listing:
        """All ranks take rank 0's listing, which the key of the result was computed from: hosts may
        see different states of shared storage."""
        if location not in self._listings:
            self._listings[location] = self.collectives.broadcast_from_rank0(
                lambda: self._contents.listing(location)
            )
        return self._listings[location]

    def annotations(self, option: str, location: str) -> Annotations:
        """The annotated images that an option names, as rank 0 lists them. Raises ADDPError."""
        wanted = (option, location)
        if wanted not in self._annotations:
            self._annotations[wanted] = self.collectives.broadcast_from_rank0(
                lambda: self._contents.annotations(option, location)
            )
        return self._annotations[wanted]

    @cached_property
    def samples(self) -> SampleSet:
        """The set of images that this checkpoint generates. All ranks together make what is
        missing of it."""
        assert isinstance(self.network, ADDP)
        options, step = self.options, self._checkpoint.step
        samples = SampleSet(
            # Not by step alone: another checkpoint may have stood under this step.
            self._sets / self._checkpoint.manifest.fingerprint,
            Trained(self.network, self.tokenizer, self.config, step),
            SetOptions(
                count=options.count,
                seed=options.seed,
                batch=options.batch,
                precision=options.precision,
                container="webdataset",
            ),
            options.sampling,
            classes=self.sample_classes,
        )
        self.over("samples", samples.chunks, samples.make_chunk)
        return samples

    @cached_property
    def sample_classes(self) -> SampleClasses | None:
        """The classes of the samples, drawn as often as all of --images have them, or each alike
        without images; None where samples have none. Called on all ranks together. Raises
        ADDPError, also where the images have a class that the network does not know."""
        assert isinstance(self.network, ADDP)
        known, location = self.network.classes, self.options.images
        if not known or not self.options.class_guidance:
            return None
        if location is None:
            return SampleClasses.as_in_data(known, [])
        listing = self._listing(location)
        try:
            labels = labels_in(known, listing.classes)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; --class-guidance 0 measures samples without a class"
            ) from error
        return SampleClasses.as_in_data(known, [labels[image.label] for image in listing.images])

    def remove_samples(self) -> None:
        """Remove the samples on every rank: they may lie on each host's own disk."""
        self.collectives.barrier()
        shutil.rmtree(self._sets, ignore_errors=True)

    def over_kept(
        self,
        benchmark: str,
        location: str,
        images: int,
        read: Callable[[int], T],
        compute: Callable[[list[T]], Any],
    ) -> list[Any]:
        """Compute a JSON document of each chunk of `--batch` images, and return this rank's, by
        their order; the chunks are divided among the ranks.

        A document that an evaluator left before it was killed is not computed again. location: of
        the images. read: returns an image by its row, or raises BadImage; threads call it. compute:
        takes the images of a chunk that can be read.
        """
        batch, checkpoint = self.options.batch, self._checkpoint
        kept = KeptChunks(
            self.work / f"chunks{suffix(checkpoint.weights)}",
            # Not the step: another checkpoint may have stood under it.
            [benchmark, checkpoint.manifest.fingerprint, dict(self._settings[benchmark]), batch],
        )
        self._kept.append(kept)
        own = self.own(-(-images // batch))
        found = {number: kept.load(number) for number in own}
        missing = [number for number in own if found[number] is None]
        rows = (range(images)[number * batch :][:batch] for number in missing)
        with self.progress(benchmark, len(own)) as progress:
            progress.advance(len(own) - len(missing))
            for number, chunk in zip(
                missing, read_ahead(rows, read, reading_threads(location)), strict=True
            ):
                found[number] = compute(chunk)
                kept.keep(number, found[number])
                progress.advance()
        return list(found.values())

    def remove_kept(self) -> None:
        """Remove on every rank what `over_kept` has kept."""
        self.collectives.barrier()
        for kept in self._kept:
            kept.remove()

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return compute(), which is called once for this checkpoint: benchmarks share its result.

        key: the same for all that would compute the same thing.
        """
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def over(self, title: str, chunks: int, work: Callable[[int], T]) -> list[T]:
        """Divide work(0) .. work(chunks-1) among the ranks, and show progress.

        Returns all results, in order, on rank 0; an empty list on the other ranks.
        """
        with self.progress(title, len(self.own(chunks))) as progress:
            return self.collectives.divide(chunks, work, progress.advance)

    def over_images(self, title: str, crops: Crops, work: Callable[[Chunk], T]) -> list[T]:
        """As `over`, for all chunks of images; the next ones are read meanwhile."""
        chunks = crops.each(self.own(crops.chunks))
        return self.over(title, crops.chunks, lambda _: work(next(chunks)))

    def own(self, chunks: int) -> range:
        """Which of a number of chunks are this rank's."""
        return range(self.collectives.rank, chunks, self.collectives.world_size)

    def progress(self, title: str, total: int) -> Progress:
        """Show how far rank 0 is, in batches."""
        title = f"step {self._checkpoint.step}: {title}"
        return Progress(title, total, "batches", shown=self.collectives.rank == 0)
