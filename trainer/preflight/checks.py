"""What would stop a run at its start, or soon after it, found before it waits in a queue. Needs no
GPU and no launcher.

The checks are those of the trainer itself, made without the values of large networks where their
headers will do.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_pipeline.storage import Store, is_remote, open_store
from data_pipeline.storage.output import probe, writable
from data_pipeline.streaming.shard_cache import ShardCache
from model.errors import ADDPError
from trainer import costs
from trainer.checkpointing.expected import Expected, last_config
from trainer.checkpointing.ownership import agreed_run, holder_of, run_of
from trainer.checkpointing.restore import foreseen, has_checkpoints
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.objectives.base import Objective
from trainer.objectives.initial_weights import (
    check_initial_weights,
    initial_weights,
    without_values,
)
from trainer.objectives.registry import objective_class, users_of
from trainer.records import ago
from trainer.run_folder import RunFolder
from trainer.schedule import accumulation_steps, total_steps
from trainer.startup import takes_initial_weights

State = Literal["ok", "warning", "FAILED"]
_GIB = 2**30


class Check(NamedTuple):
    """One line of the answer. text: what was found, or what is wrong and what to do."""

    name: str
    state: State
    text: str


def check_run(file: Path | None, overrides: list[str], gpus: int) -> Iterator[Check]:
    """Yield each check as soon as it is made. Nothing is left behind anywhere.

    file, overrides: the configuration, as `load_config` takes it. gpus: ranks of the run. No error
    of a user is raised: it becomes a check that has FAILED.
    """
    try:
        config = load_config(file, overrides)
    except ADDPError as error:
        yield Check("configuration", "FAILED", str(error))
        return
    text = (
        f"{file or 'defaults'}: objective {config.objective}, {config.precision}, "
        f"ZeRO-{config.zero_stage}"
    )
    yield Check("configuration", "ok", text)
    yield from _Checks(config, gpus).all()


class _Checks:
    """The checks of one configuration, in order. Later ones use what earlier ones have opened."""

    def __init__(self, config: RunConfig, gpus: int) -> None:
        self._config, self._gpus = config, gpus
        self._folder = RunFolder(config.run)
        self._objective: Objective | None = None
        self._store: Store | None = None
        self._weights_fit = False

    def all(self) -> Iterator[Check]:
        for name, check in (
            ("batch", self._batch),
            ("weights", self._weights),
            ("data", self._data),
            ("cache", self._cache),
            ("run folder", self._run_folder),
            ("upload", self._upload),
            ("resume", self._resume),
        ):
            yield from _guarded(name, check)

    def _batch(self) -> Iterator[tuple[State, str]]:
        batch, accumulation = self._config.batch, accumulation_steps(self._config, self._gpus)
        yield (
            "ok",
            f"{batch.global_batch} = micro {batch.micro} x accumulation {accumulation} x "
            f"{self._gpus} GPUs",
        )

    def _weights(self) -> Iterator[tuple[State, str]]:
        """Read the headers of files only: on the meta device, tensors have shapes and no values."""
        config, first = self._config, initial_weights(self._config)
        with without_values():
            files = objective_class(config.objective).check_weights(config)
        self._weights_fit = True
        if files or first is None:
            named = " and ".join(
                f"{path} ({resized})" if resized else str(path) for path, resized in files.items()
            )
            yield "ok", f"{named}: of the configured sizes" if named else "none needed"
        if first is None:
            return
        if takes_initial_weights(config, self._folder):
            first = first._replace(resized=check_initial_weights(config))
            yield "ok", f"the run begins with {first}, of the configured sizes"
        else:
            yield "ok", f"{first} is not read: the run goes on from its own checkpoint"

    def _data(self) -> Iterator[tuple[State, str]]:
        # Without a cache, so that no folder of one is left behind.
        data = self._config.data.model_copy(update={"cache": None})
        config = self._config.model_copy(update={"data": data})
        objective = objective_class(config.objective).outlined(config)
        self._objective = objective
        with closing(objective):
            what = objective.look_at_data()
        steps = objective.epochs.steps_per_epoch
        total = total_steps(config.schedule, objective.epochs)
        yield "ok", f"{what}; {steps:,} steps an epoch, {total:,} in all"

    def _cache(self) -> Iterator[tuple[State, str]]:
        data = self._config.data
        places = [data.tokens] if data.tokens else list(data.mixture)
        uses_cache = self._config.objective in users_of("data.cache")
        if not uses_cache or not any(map(is_remote, places)):
            yield "ok", "not needed: the data lie in folders"
        elif data.cache is None:
            yield (
                "warning",
                "there is none: every rank keeps shards in memory and downloads its own; set "
                "data.cache to a folder on a local disk",
            )
        else:
            yield self._space_for_cache(data.cache)

    def _space_for_cache(self, folder: Path) -> tuple[State, str]:
        try:
            parent = writable(folder)
            ShardCache(parent, 0, print).check()
        except (OSError, ADDPError) as error:
            text = f"{folder} cannot be used on this machine ({error}); on the run's it must be"
            return "warning", text
        free, wanted = shutil.disk_usage(parent).free, self._config.data.cache_gib * _GIB
        if self._objective is not None:
            wanted = min(wanted, self._objective.data_bytes())
        text = (
            f"{folder}: {free / _GIB:.1f} GiB free on this machine, up to "
            f"{wanted / _GIB:.1f} GiB wanted"
        )
        return ("ok" if free >= wanted else "warning"), text

    def _run_folder(self) -> Iterator[tuple[State, str]]:
        config, folder = self._config, self._folder.path
        parent = writable(folder)
        size = costs.checkpoint_bytes(config)
        there = sum(f.stat().st_size for f in self._folder.checkpoints.glob("*/*") if f.is_file())
        free = shutil.disk_usage(parent).free
        kept = config.checkpoint.keep + 1  # the newest is written before an old one goes
        text = (
            f"{folder}{'' if folder.exists() else ' (will be made)'}: {free / _GIB:.1f} GiB free; "
            f"a checkpoint takes {_size(size)}, {kept} of them {_size(kept * size)}"
        )
        if free + there < kept * size:
            yield "FAILED", f"{text}; make room, choose another folder, or lower checkpoint.keep"
            return
        yield "ok", text
        every = config.checkpoint.permanent_every
        if every and self._objective is not None:
            forever = total_steps(config.schedule, self._objective.epochs) // every
            if free + there < (kept + forever) * size:
                yield (
                    "warning",
                    f"checkpoint.permanent_every = {every} keeps {forever} more for good, "
                    f"{_size(forever * size)}; there is not that much room",
                )

    def _upload(self) -> Iterator[tuple[State, str]]:
        url = self._config.checkpoint.upload
        if url is None:
            yield "ok", "not configured: checkpoints stay in the run folder"
            return
        if not is_remote(url):
            free = shutil.disk_usage(writable(Path(url))).free
            yield "ok", f"{url} can be written: {free / _GIB:.1f} GiB free"
            self._store = open_store(url) if Path(url).exists() else None
            return
        store = open_store(url)
        probe(store)
        self._store = store
        yield "ok", f"{url}: objects are written once, read and removed"

    def _resume(self) -> Iterator[tuple[State, str]]:
        """Compare manifests and sizes; a start also compares the sha256 of the files."""
        folder = self._folder
        holder = folder.holder()
        if holder is not None:
            yield (
                "warning",
                f"{folder.path} is in use by {holder}; a start is refused until that run has ended",
            )
        if folder.stop.exists():
            yield (
                "warning",
                f"{folder.stop} is there: the run would save and stop at once; remove it",
            )
        if self._store is not None and (other := holder_of(self._store)):
            yield (
                "warning",
                f"{self._store.url} is held by {other}; a start waits for a sign of life of it",
            )
        if not has_checkpoints(folder, self._store):
            foreseen(folder, None, self._expected({}))  # raises where there were some once
            yield "ok", "no checkpoints yet: starts at step 0"
            return
        if self._objective is None or not self._weights_fit:
            yield (
                "warning",
                "there are checkpoints, which were not compared with data and weights that failed",
            )
            return
        restored = foreseen(folder, self._store, self._expected(self._objective.identity()))
        for reason in restored.refused:
            yield "warning", f"refused: {reason}"
        assert restored.manifest is not None
        total = total_steps(self._config.schedule, self._objective.epochs)
        saved = restored.manifest.saved
        age = f", saved {ago(saved)}" if saved else ""
        by = f"{restored.manifest.world_size} ranks{age}"
        if restored.step >= total:
            text = f"nothing is left to do: step {restored.step} of {total} is saved (by {by})"
            yield "warning", text
        else:
            changes = ", ".join(map(str, restored.changed))
            since = f"; changed since: {changes}" if changes else ""
            yield "ok", f"goes on at step {restored.step} of {total} (saved by {by}){since}"

    def _expected(self, run_identity: dict[str, Any]) -> Expected:
        """Return what a start of this configuration would expect of a checkpoint."""
        run = run_of(self._folder)
        if self._store is not None:
            run = agreed_run(self._folder, self._store, run)
        return Expected(run_identity, run or "", self._config, last_config(self._folder))


def _guarded(name: str, check: Callable[[], Iterator[tuple[State, str]]]) -> Iterator[Check]:
    """Yield the lines of a check, and one that has FAILED where the check raises an error."""
    try:
        for state, text in check():
            yield Check(name, state, text)
    except ADDPError as error:
        yield Check(name, "FAILED", str(error))
    except OSError as error:
        text = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
        yield Check(name, "FAILED", text)


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= 0.01 * _GIB else f"{math.ceil(count / 2**20)} MiB"
