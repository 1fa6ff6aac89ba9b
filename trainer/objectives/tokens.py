"""What the objectives that read token shards share: the loader, mask ratios, and the start of the
output bias."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from data_pipeline.storage import LocalStore
from data_pipeline.streaming.loader import Batch, LoaderOptions, TokenLoader
from model.errors import ConfigError
from trainer.config.schema import RunConfig
from trainer.objectives.base import Objective, on_device
from trainer.objectives.registry import trained_sizes
from trainer.run_folder import RunFolder

# Where the output bias starts from the data: the bias of vocabulary entries that are no codes.
_UNUSED_LOGIT = -12.0


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
                labels=False,
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

    def ratio_draw(self, batch: Batch, step: int) -> int:
        """The number of the mask ratio that a micro batch gets: that of the step (ADDP algorithm
        1), or one of its own, as in the reference."""
        return step if self.config.mask_ratio_scope == "step" else batch.start

    def batch(self, step: int, offset: int, count: int) -> Batch:
        """The tokens of the samples: ids (B, L), and weights (B,) where some rows do not count."""
        return self.loader.batch(step, offset, count)

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


def row_weights(batch: Batch, device: torch.device) -> Tensor | None:
    """(B,) float32, 0 for rows of quarantined shards and for padding; None where all rows count."""
    return None if batch.weights is None else on_device(device, batch.weights)
