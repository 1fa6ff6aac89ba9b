"""What the objectives that read token shards share: the loader, masks, and the start of the output
bias."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from model.config import TransformerConfig
from model.device import staged
from model.errors import ConfigError
from model.masking import masked_count
from trainer.config.schema import RunConfig
from trainer.objectives.base import Objective
from trainer.objectives.condition import (
    blank_classes,
    conditional_sizes,
    reads_labels,
    told_classes,
)
from trainer.objectives.registry import trained_sizes
from trainer.run_folder import RunFolder

# Where the output bias starts from the data: the bias of vocabulary entries that are no codes.
_UNUSED_LOGIT = -12.0

T = TypeVar("T", bound=tuple[Any, ...])


class TokenBatch(NamedTuple):
    """A micro batch in pinned host memory, with its masks.

    ids: (B, L) int64. masks: as `draw_masks` of the objective returns them. weights: (B,) float32,
    0 for rows of quarantined shards and for padding; None if all rows count. classes: (B,)
    int64, what a conditional network is told (`told_classes`); None if nothing is.
    """

    ids: Tensor
    masks: Any
    weights: Tensor | None
    classes: Tensor | None = None

    def on(self, device: torch.device) -> TokenBatch:
        """The same batch on a device. The copies wait for nothing that is computed there."""

        def move(parts: T) -> T:
            return _each_tensor(parts, lambda part: part.to(device, non_blocking=True))

        return move(self._replace(masks=move(self.masks)))


class TokenObjective(Objective):
    """Reads the token data set `data.tokens`, or the mixture `data.mixture`."""

    def __init__(
        self, config: RunConfig, fresh: bool = False, *, tokenizer: str | None = None
    ) -> None:
        """tokenizer: the fingerprint of the tokenizer that must have made the tokens; None for any.

        Raises ConfigError where no data set is configured, or one of other sizes; DataError,
        StorageError.
        """
        super().__init__(config, fresh)
        data, geometry = config.data, config.geometry
        if (data.tokens is None) == (not data.mixture):
            raise ConfigError(
                f"objective {config.objective} needs data.tokens, a data set made by `addp "
                "tokenize`, or data.mixture"
            )
        started = time.monotonic()
        self.loader = TokenLoader(
            data.tokens or list(data.mixture.items()),
            global_batch=config.batch.global_batch,
            seed=config.seed,
            tokenizer=tokenizer,
            incident=RunFolder(config.run).incident,
            options=LoaderOptions(
                data.window,
                data.stripes,
                data.tail,
                labels=reads_labels(config),
                cache=data.cache,
                cache_bytes=int(data.cache_gib * 2**30),
                on_bad_shard=data.on_bad_shard,
                retry_seconds=data.retry_seconds,
            ),
        )
        self.opening = time.monotonic() - started
        manifest = self.loader.manifest
        if (manifest.codebook_size, manifest.tokens) != (geometry.codebook_size, geometry.tokens):
            raise ConfigError(
                f"{data.tokens or data.mixture} holds {manifest.tokens} tokens an image of "
                f"{manifest.codebook_size} codes, but tokenizer.sizes gives {geometry.tokens} of "
                f"{geometry.codebook_size}"
            )
        self.epochs = self.loader.schedule
        self.data_fingerprint = self.loader.fingerprint
        self.order = self.loader.order_options

    def start_output_bias(self, bias: Tensor) -> None:
        """With `output_bias: frequencies`, fill the bias of the output layer with the log
        frequencies of the K codes in the data; ids that are no codes start as good as impossible.
        bias: (..., V)."""
        if self.config.output_bias == "frequencies":
            frequencies = torch.from_numpy(self.loader.code_frequencies())
            with torch.no_grad():
                bias.fill_(_UNUSED_LOGIT)
                bias[..., : len(frequencies)] = frequencies.log().to(bias)

    @abstractmethod
    def draw_masks(self, draw: int, start: int, count: int, length: int) -> tuple[Any, ...]:
        """The masks of the samples with global indices start .. start+count-1, of `length` tokens
        each: a named tuple of tensors and numbers. draw: the number of the mask ratio."""

    @property
    def sizes(self) -> TransformerConfig:
        """The sizes of the trained network, with the classes of the data where it is told them.
        Raises ConfigError."""
        return conditional_sizes(self.config, [s.manifest for s in self.loader.shards])

    def batch(self, step: int, offset: int, count: int) -> TokenBatch:
        """The tokens of the samples, and their masks. A micro batch gets the mask ratio of the step
        (ADDP algorithm 1) or one of its own, as in the reference."""
        ids, labels, start, weights = self.loader.batch(step, offset, count)
        draw = step if self.config.mask_ratio_scope == "step" else start
        masked = TokenBatch(
            torch.from_numpy(ids.astype("int64")),
            _each_tensor(self.draw_masks(draw, start, *ids.shape), staged),
            None if weights is None else torch.from_numpy(weights),
            told_classes(self.config, labels, start),
        )
        return _each_tensor(masked, staged)

    @classmethod
    @abstractmethod
    def blank_masks(cls, mask: Tensor, masked: int) -> tuple[Any, ...]:
        """Masks as `draw_masks` returns them, of which `mask` is the one that counts in the loss:
        (B, L) bool, whose first `masked` positions are masked."""

    @classmethod
    def blank_batch(cls, config: RunConfig, count: int, masked: float) -> TokenBatch:
        tokens = config.geometry.tokens
        number = masked_count(tokens, masked)
        mask = (torch.arange(tokens) < number).repeat(count, 1)
        ids = torch.zeros(count, tokens, dtype=torch.int64)
        masks = cls.blank_masks(mask, number)
        return TokenBatch(ids, masks, None, blank_classes(config, count))

    def close(self) -> None:
        self.loader.close()

    def look_at_data(self) -> str:
        """As the base class says. Beside the manifests, the last byte of each data set's first
        shard is read."""
        data_sets = self.loader.shards
        for shards in data_sets:
            if isinstance(shards.store, LocalStore):
                shards.open(0)
            else:  # one byte, as nothing shall be downloaded
                entry = shards.manifest.shards[0]
                shards.store.read(entry.name, entry.bytes - 1, 1)
        manifest = data_sets[0].manifest
        return (
            f"{' and '.join(shards.store.url for shards in data_sets)}: "
            f"{sum(shards.manifest.rows for shards in data_sets):,} images as {manifest.tokens} "
            f"tokens of {manifest.codebook_size} codes"
        )

    def data_bytes(self) -> int:
        return sum(e.bytes for shards in self.loader.shards for e in shards.manifest.shards)

    @classmethod
    def depends_on_micro(cls, config: RunConfig) -> bool:
        return (
            trained_sizes(config).dropout > 0
            or config.mask_ratio_scope == "micro"
            or config.data.tail == "pad"
            or config.data.on_bad_shard == "quarantine"
        )


def _each_tensor(parts: T, change: Callable[[Tensor], Tensor]) -> T:
    """A named tuple, with each of its tensors changed."""
    return type(parts)(*(change(part) if isinstance(part, Tensor) else part for part in parts))
