"""What a part of an evaluation is given: a checkpoint's networks, pictures, and all ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from data_pipeline.pictures import Split
from data_pipeline.progress import Progress
from model.addp import ADDP
from model.encoder import Encoder
from model.errors import ConfigError, DataError
from model.sampler import SamplerConfig
from model.vq import VQTokenizer
from model.weights import Network, build
from trainer.config import RunConfig
from trainer.control import Control
from trainer.evaluation.crops import Crops
from trainer.evaluation.recognition import Features, encoder_features
from trainer.evaluation.results import suffix
from trainer.evaluation.sample_set import SampleSet
from trainer.evaluation.trained import Trained, frozen_tokenizer
from trainer.run_folder import Weights


class Options(BaseModel):
    """What results depend on, beside the checkpoint. `addp evaluate --help` describes each.

    Made of what was given; `with_run` takes the rest from the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: str | None = None
    train_pictures: str | None = None
    held_out: float = 0.1
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
    precision: Literal["fp32", "bf16"] = "fp32"
    inception_weights: Path | None = None
    baselines: bool = False

    def with_run(self, config: RunConfig) -> tuple[Options, dict[str, Any]]:
        """(what results depend on, those of its values that came from the run's configuration)."""
        of_run = {
            "pictures": config.data.pictures, "held_out": config.data.held_out, "train_tokens": config.data.tokens,
            "seed": config.seed, "batch": config.batch.micro,
        }  # fmt: skip
        taken = {k: v for k, v in of_run.items() if k not in self.model_fields_set and v is not None}
        return self.model_copy(update=taken), taken

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(self.steps, self.schedule, self.choice_temperature, self.temperature, self.top_p)


class Outcome(NamedTuple):
    """figures: numbers by name. pictures: PNGs by name. Of rank 0; the other ranks' is not looked at."""

    figures: dict[str, Any]
    pictures: dict[str, bytes] = {}  # noqa: RUF012 - never changed


class Task:
    """One checkpoint of a run. work: folder for sample sets and caches."""

    def __init__(
        self, control: Control, device: torch.device, options: Options, config: RunConfig, step: int, network: Network,
        facts: dict[str, Any], weights: Weights, work: Path, tokenizer: Path | None = None,
    ) -> None:  # fmt: skip
        self.control, self.device, self.options, self.config, self.step = control, device, options, config, step
        self.network = network.to(device).eval()
        self.work, self.sample_folder = work, work / f"samples{suffix(weights)}"
        self._facts, self._tokenizer = facts, tokenizer
        self._crops: dict[Split, Crops] = {}
        self._features: dict[tuple[str, str], tuple[Features, Tensor]] = {}

    @cached_property
    def tokenizer(self) -> VQTokenizer:
        return frozen_tokenizer(self.config, self._tokenizer, self._facts["frozen"]["tokenizer"]).to(self.device)

    @property
    def image_size(self) -> int:
        return self.config.geometry.image_size

    def crops(self, split: Split) -> Crops:
        """Listed once: a source may have millions of pictures."""
        if split not in self._crops:
            self._crops[split] = self._open(split)
        return self._crops[split]

    def _open(self, split: Split) -> Crops:
        place = self.options.pictures
        if place is None:
            raise ConfigError("this part of the evaluation needs --pictures: class folders or WebDataset shards")
        if self.options.train_pictures is not None:
            place, split = (place if split == "val" else self.options.train_pictures), "all"
        return Crops(place, split, self.options.held_out, self.image_size, self.options.batch)

    def over(self, title: str, chunks: int, work: Callable[[int], Any]) -> list[Any]:
        """work(0) .. work(chunks-1), divided among the ranks, with progress shown; all results on rank 0. Raises
        DataError on all ranks where one listed other pictures than rank 0."""
        self._check_alike(chunks)
        with self.progress(title, len(range(self.control.rank, chunks, self.control.world_size))) as progress:
            return self.control.divide(chunks, work, progress.advance)

    def _check_alike(self, chunks: int) -> None:
        """Each rank lists pictures by itself, and hosts may see another state of shared storage."""
        mine = {str(split): crops.fingerprint for split, crops in self._crops.items()} | {"chunks": str(chunks)}
        first, *others = self.control.gather(mine)
        for rank, found in enumerate(others, 1):
            if any(first.get(key) != value for key, value in found.items()):
                raise DataError(
                    f"rank {rank} lists other pictures than rank 0; look whether their hosts see the same storage, and "
                    "whether its files are being changed, and start again"
                )

    def progress(self, title: str, total: int) -> Progress:
        """Of what rank 0 does."""
        return Progress(f"step {self.step}: {title}", total, "batches", shown=self.control.rank == 0)

    def features(self, split: Split, name: str, extract: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
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
        """What features are taken from: the trained encoder; with `baselines` also an untrained one, and pixels."""
        assert isinstance(self.network, Encoder)
        found: dict[str, Callable[[Tensor], Any]] = {"trained": _features_of(self.network)}
        if self.options.baselines:
            torch.manual_seed(self.config.seed)
            fresh = build("addp", self.config.addp.sizes, self.config.geometry).to(self.device).eval()
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
        made = SampleSet(self.sample_folder, trained, o.count, o.seed, o.sampler, "webdataset", o.batch, o.precision)
        self.over("samples", made.chunks, made.make_chunk)
        return made


def _features_of(network: Encoder) -> Callable[[Tensor], Any]:
    return lambda pixels: encoder_features(network, pixels)
