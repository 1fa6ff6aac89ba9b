"""Which data are read and in which order: as a run's configuration says, or as the command line
does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from data_pipeline.storage import open_store
from data_pipeline.streaming.fetch import Incident
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from model.errors import ConfigError

if TYPE_CHECKING:
    from cluster.commands.data import ReadingOptions


@dataclass(frozen=True)
class Reading:
    """How data are read.

    data: a data set, or several with their weights.
    tokenizer: weights of the tokenizer that made the tokens, where they are known.
    rewinds: what the run left out of its data after spikes, as in its rewinds.json.
    """

    data: str | list[tuple[str, float]]
    global_batch: int = 1024
    seed: int = 0
    options: LoaderOptions = LoaderOptions()
    tokenizer: Path | None = None
    rewinds: tuple[dict[str, int], ...] = ()

    def open(self, incident: Incident) -> TokenLoader:
        """Open the data. Raises what opening a data set raises."""
        return TokenLoader(
            self.data,
            global_batch=self.global_batch,
            seed=self.seed,
            options=self.options,
            incident=incident,
        )

    def data_step(self, step: int) -> int:
        """Return which global batch of the data a step of the run read."""
        from trainer.resilience.state import data_step

        return data_step(list(self.rewinds), step) if self.rewinds else step


def reading(tokens: str | None, run: str | None, given: ReadingOptions) -> Reading:
    """Take what was given on the command line, and the rest from the run, or the defaults.

    Raises ConfigError where there is no such run, or it reads no token data set.
    """
    if run is None and tokens is None:
        raise typer.BadParameter(
            "name the data set, or a run that reads it: --run RUN", param_hint="TOKENS"
        )
    usual = _of_run(run, tokens) if run is not None else Reading(tokens or "")
    options = replace(
        usual.options,
        window=given.window or usual.options.window,
        stripes=given.stripes or usual.options.stripes,
        cache=given.cache or usual.options.cache,
    )
    return replace(
        usual,
        global_batch=given.global_batch or usual.global_batch,
        seed=usual.seed if given.seed is None else given.seed,
        options=options,
    )


def _of_run(run: str, tokens: str | None) -> Reading:
    """Return how the run reads its data, or `tokens`, if they are given. Raises ConfigError."""
    from trainer.evaluation.trained import run_config
    from trainer.resilience.state import rewinds_on

    config = run_config(run)
    data = config.data
    source = tokens or data.tokens or list(data.mixture.items())
    if not source:
        raise ConfigError(
            f"{run} trained on images (objective {config.objective}); it reads no token data set"
        )
    options = LoaderOptions(
        data.window,
        data.stripes,
        data.tail,
        cache=data.cache,
        cache_bytes=int(data.cache_gib * 2**30),
        on_bad_shard=data.on_bad_shard,
    )
    return Reading(
        source,
        config.batch.global_batch,
        config.seed,
        options,
        tokenizer=config.tokenizer.weights,
        rewinds=tuple(rewinds_on(open_store(run))),
    )
