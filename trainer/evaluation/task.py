"""What a part of an evaluation is given: a checkpoint's networks, images, and all ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from data_pipeline.images.images import Split, of_split
from data_pipeline.images.location import locate
from data_pipeline.progress import Progress
from model.addp import ADDP
from model.encoder import Encoder
from model.errors import ConfigError, DataError
from model.networks import Network, build
from model.precision import InferencePrecision
from model.sampler import SamplerConfig
from model.vq import VQTokenizer
from trainer.checkpointing.format import Manifest
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.evaluation.benchmarks.recognition import Features, encoder_features
from trainer.evaluation.contents import Contents
from trainer.evaluation.crops import Crop, Crops
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_set import SampleSet
from trainer.evaluation.trained import Trained, frozen_tokenizer
from trainer.run_folder import Weights


class Options(BaseModel):
    """What results depend on, beside the checkpoint. `addp evaluate --help` describes each.

    Made of what was given; `with_run` takes the rest from the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = None
    train_images: str | None = None
    held_out: float = 0.1
    reference: Literal["published", "held-out"] = "published"
    tokens: str | None = None
    train_tokens: str | None = None
    count: int = 50_000
    seed: int = 0
    steps: int = 20
    schedule: Literal["cosine", "linear"] = "cosine"
    choice_temperature: float = 6.0
    temperature: Literal["dynamic", "constant"] = "dynamic"
    top_p: float = 1.0
    batch: int = 64
    precision: InferencePrecision = "fp32"
    inception_weights: Path | None = None
    baselines: bool = False

    def with_run(self, config: RunConfig) -> tuple[Options, dict[str, Any]]:
        """(what results depend on, those of its values that came from the run's configuration)."""
        of_run = {
            "images": config.data.images,
            "held_out": config.data.held_out,
            "train_tokens": config.data.tokens,
            "seed": config.seed,
            "batch": config.batch.micro,
        }
        taken = {
            k: v for k, v in of_run.items() if k not in self.model_fields_set and v is not None
        }
        return self.model_copy(update=taken), taken

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(
            self.steps, self.schedule, self.choice_temperature, self.temperature, self.top_p
        )


class Outcome(NamedTuple):
    """figures: numbers by name. images: PNGs by name. Of rank 0; the other ranks' is not looked
    at."""

    figures: dict[str, Any]
    images: dict[str, bytes] = {}  # noqa: RUF012 - never changed


class Task:
    """One checkpoint of a run. work: folder for sample sets and caches. contents: of the data, on
    rank 0."""

    def __init__(
        self,
        collectives: Collectives,
        device: torch.device,
        options: Options,
        config: RunConfig,
        step: int,
        network: Network,
        manifest: Manifest,
        weights: Weights,
        work: Path,
        contents: Contents,
        tokenizer: Path | None = None,
    ) -> None:
        self.collectives, self.device, self.options, self.config, self.step = (
            collectives,
            device,
            options,
            config,
            step,
        )
        self.network = network.to(device).eval()
        self.work, self._sets = work, work / f"samples{suffix(weights)}"
        self._manifest, self._contents, self._tokenizer = manifest, contents, tokenizer
        self._crops: dict[tuple[str, Split, Crop], Crops] = {}
        self._features: dict[tuple[str, str], tuple[Features, Tensor]] = {}

    @cached_property
    def tokenizer(self) -> VQTokenizer:
        expected = self._manifest.run_identity["frozen"]["tokenizer"]
        return frozen_tokenizer(self.config, self._tokenizer, expected).to(self.device)

    @property
    def image_size(self) -> int:
        return self.config.geometry.image_size

    def crops(self, split: Split) -> Crops:
        """Of training or held-out images. All ranks together, as `reference`. Raises ADDPError."""
        place, apart = self._images, self.options.train_images
        if apart is None:
            return self._opened(place, split, "own")
        return self._opened(place if split == "val" else apart, "all", "own")

    def reference(self) -> Crops:
        """The real images that samples are compared with: by the published protocol all of
        --images."""
        if self.options.reference == "held-out":
            return self.crops("val")
        return self._opened(self._images, "all", "published")

    @property
    def _images(self) -> str:
        if self.options.images is None:
            raise ConfigError(
                "this part of the evaluation needs --images: class folders or WebDataset shards"
            )
        return self.options.images

    def _opened(self, place: str, split: Split, crop: Crop) -> Crops:
        """Rank 0's listing, which its key was taken of, counts for all ranks."""
        wanted = (place, split, crop)
        if wanted not in self._crops:
            listing = self.collectives.broadcast_from_rank0(lambda: self._contents.listing(place))
            images = tuple(of_split(listing.images, split, self.options.held_out))
            if not images:
                raise DataError(
                    f"the {split} split of {place} is empty; give more images, or another "
                    "--held-out"
                )
            size, chunk = self.image_size, self.options.batch
            self._crops[wanted] = Crops(
                locate(place).store, images, listing.classes, size, chunk, crop
            )
        return self._crops[wanted]

    def over(self, title: str, chunks: int, work: Callable[[int], Any]) -> list[Any]:
        """work(0) .. work(chunks-1), divided among the ranks, with progress shown; all results on
        rank 0."""
        with self.progress(
            title, len(range(self.collectives.rank, chunks, self.collectives.world_size))
        ) as progress:
            return self.collectives.divide(chunks, work, progress.advance)

    def progress(self, title: str, total: int) -> Progress:
        """Of what rank 0 does."""
        return Progress(
            f"step {self.step}: {title}", total, "batches", shown=self.collectives.rank == 0
        )

    def features(
        self, split: Split, name: str, extract: Callable[[Tensor], Any]
    ) -> tuple[Any, Tensor]:
        """(features, labels) of a split, once for a checkpoint. On rank 0; empty on the others."""
        if (split, name) not in self._features:
            crops = self.crops(split)

            def work(number: int) -> Any:
                chunk = crops.read(number)
                return extract(chunk.pixels), chunk.labels

            parts = self.over(f"features of {split}", crops.chunks, work)
            self._features[split, name] = (
                (np.concatenate([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
                if parts
                else (np.zeros((0, 1), np.float32), torch.zeros(0))
            )
        return self._features[split, name]

    def encoders(self) -> dict[str, Callable[[Tensor], Any]]:
        """What features are taken from: the trained encoder; with `baselines` also an untrained
        one, and pixels."""
        assert isinstance(self.network, Encoder)
        found: dict[str, Callable[[Tensor], Any]] = {"trained": _features_of(self.network)}
        if self.options.baselines:
            torch.manual_seed(self.config.seed)
            fresh = (
                build("addp", self.config.addp.sizes, self.config.geometry).to(self.device).eval()
            )
            assert isinstance(fresh, Encoder)
            found["untrained"] = _features_of(fresh)
            found["pixels"] = lambda pixels: pixels.flatten(1).float().div(255).numpy()
        return found

    @cached_property
    def samples(self) -> SampleSet:
        """The set of this checkpoint, made as far as it is missing."""
        assert isinstance(self.network, ADDP)
        o = self.options
        trained = Trained(self.network, self.tokenizer, self.config, self.step)
        folder = (
            self._sets / self._manifest.fingerprint
        )  # another checkpoint may have stood under this step
        made = SampleSet(
            folder, trained, o.count, o.seed, o.sampler, "webdataset", o.batch, o.precision
        )
        self.over("samples", made.chunks, made.make_chunk)
        return made

    def remove_samples(self) -> None:
        """By every rank: they may lie on each host's own disk."""
        self.collectives.barrier()
        shutil.rmtree(self._sets, ignore_errors=True)


def _features_of(network: Encoder) -> Callable[[Tensor], Any]:
    return lambda pixels: encoder_features(network, pixels)
