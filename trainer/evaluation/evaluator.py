"""Which checkpoint is measured next, by whom, and what becomes of the results."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.progress import Progress
from data_pipeline.storage import ObjectMissing, StorageError, Store, open_store
from model.errors import ConfigError
from trainer.checkpointing.catalog import Catalog, open_catalog
from trainer.checkpointing.format import Damaged
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.evaluation.benchmarks.registry import PARTS, settings_of
from trainer.evaluation.claims import Claim, Claims
from trainer.evaluation.contents import KEYS, Contents
from trainer.evaluation.course import Course, StoredCourse
from trainer.evaluation.results import FOLDER, publish, read_results, suffix
from trainer.evaluation.task import Options, Task
from trainer.evaluation.trained import is_done, is_lasting
from trainer.run_folder import Weights, step_folder

_OF_EARLIER = {"reference": "held-out"}  # settings that earlier results do not say


class Assignment(NamedTuple):
    """What all ranks do next. parts: those of the suite without a result. mark: of the checkpoint,
    on its store."""

    step: int
    parts: tuple[str, ...]
    mark: Any


class Choice:
    """Which checkpoints: one step; the newest valid one; or all, or those at multiples of `every`,
    oldest first."""

    def __init__(self, step: int | None, every: int | None) -> None:
        self._step, self._every = step, every
        self._newest: int | None = None

    def __call__(
        self, catalog: Catalog, steps: Collection[int], refused: Collection[int]
    ) -> list[int]:
        """steps: of all checkpoints."""
        if self._step is not None:
            return [catalog.known(self._step)] if self._step not in refused else []
        if self._every is None:
            if self._newest is None or self._newest in refused:
                self._newest = catalog.newest_valid(but=refused)
            return [self._newest]
        return sorted(s for s in steps if s % self._every == 0 and s not in refused)


class Evaluator:
    """Rank 0 decides, all ranks compute. As many evaluators as there are may watch one run.

    choose: which of the checkpoints there are. follow: wait for more until the run is done.
    """

    def __init__(
        self,
        run: str,
        collectives: Collectives,
        device: torch.device,
        parts: list[str],
        options: Options,
        weights: Weights,
        choose: Choice,
        follow: bool,
        lease: float,
        work: Path,
        keep_samples: bool,
        tokenizer: Path | None,
        config: RunConfig,
    ) -> None:
        self._run, self._collectives, self._device = run, collectives, device
        self._parts, self._given, self._weights = parts, options, weights
        self._options, _ = options.with_run(config)
        self._contents, self._config = Contents(), config
        self._choose, self._follow, self._work = choose, follow, work
        self._keep_samples, self._tokenizer = keep_samples, tokenizer
        self._store: Store = open_store(run)
        self._claims = Claims(self._store, lease)
        self._claim: Claim | None = None
        # Of checkpoints their marks, for as long as these last: then another one stands under that
        # step.
        self._refused: dict[int, Any] = {}  # damaged, removed meanwhile, or left by a rewind
        self._complete: dict[int, Any] = {}  # with all results
        self._poll = min(lease / 4, 15.0)

    def go(self) -> None:
        """Until nothing is left to do. Raises ADDPError."""
        while True:
            found = self._collectives.broadcast_from_rank0(self._next)
            if found is None:
                return
            try:
                self._evaluate(found)
            finally:
                if self._claim is not None:
                    self._claim.release()
                    self._claim = None

    def _next(self) -> Assignment | None:
        """On rank 0: wait for, and claim, a checkpoint that lacks results."""
        what = "a checkpoint" if self._follow else "another evaluator"
        with Progress(f"{self._run}: waiting for {what}", None, "measured") as progress:
            while True:
                try:
                    found, finished = self._look()
                except StorageError as error:
                    self._endure(error)
                    continue
                if found is not None or finished:
                    return found
                progress.set(len(self._complete))
                self._contents.forget_listings()
                time.sleep(self._poll)

    def _look(self) -> tuple[Assignment | None, bool]:
        """(claimed work, whether there will be no more)."""
        done = is_done(self._run)  # before the list: nothing comes after it
        catalog = _opened(self._run)
        if catalog is None:
            return None, False
        course, waiting = StoredCourse(self._store), False
        refused = [step for step, mark in self._refused.items() if course.marks.get(step) == mark]
        for step in self._choose(catalog, course.marks, refused):
            mark = course.marks.get(step)
            if course.is_left(step):
                self._refuse(step, mark, "it was trained on data that a rewind leaves out")
                waiting = True  # for another choice
                continue
            if self._complete.get(step) == mark or not self._missing(step, course):
                self._complete[step] = mark
                continue
            self._claim = self._claims.take(f"{step_folder(step)}{suffix(self._weights)}")
            if self._claim is None:
                waiting = True  # for another evaluator: should it die, the work is ours
                continue
            missing = self._missing(step, course)  # it may just have ended
            if missing:
                return Assignment(step, missing, mark), False
            self._claim.release()
            self._claim = None
        return None, not waiting and (done or not self._follow)

    def _refuse(self, step: int, mark: Any, reason: str) -> None:
        self._refused[step] = mark
        self._say(f"step {step} is left out: {reason}")

    def _endure(self, error: StorageError) -> None:
        """Who follows a run waits for its store; nobody else does, and nobody for other
        credentials. Raises the error."""
        if not self._follow or is_lasting(self._run, error):
            raise error
        self._say(f"{error}; tries again")
        time.sleep(self._poll)

    def _missing(self, step: int, course: Course) -> tuple[str, ...]:
        """Parts without a result of this checkpoint. Raises ConfigError where one was made with
        other options."""
        found = [
            r
            for r in read_results(self._store, step)
            if r["step"] == step and r["weights"] == self._weights
        ]
        there = {r["part"]: r for r in found if course.is_current(r)}
        for part in self._parts:
            if part in there and (different := self._different(part, there[part])):
                raise ConfigError(
                    f"{self._run}: {FOLDER}/{step_folder(step)} has a result of {part} with other "
                    f"options ({', '.join(different)}); remove it to measure anew, or use the same "
                    "options"
                )
        return tuple(part for part in self._parts if part not in there)

    def _different(self, part: str, result: dict[str, Any]) -> list[str]:
        """What a result was made with, where it is not what is asked for now."""
        found: dict[str, Any] = _OF_EARLIER | result["settings"]
        if (
            "places" not in result
        ):  # of a version that knew data by the spelling of their path, and nothing of the run
            by_name = self._given.model_dump(mode="json")
            return [
                f"{name}: {found.get(name)!r} there, now {by_name[name]!r}"
                for name in settings_of(part, self._options)
                if found.get(name) != by_name[name]
            ]
        wanted, places = self._settings(part), self._places(part)
        return [
            f"{name}: other data there, {result['places'].get(name)}, than now, {places[name]}"
            if name in KEYS
            else f"{name}: {found.get(name)!r} there, now {value!r}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]

    def _settings(self, part: str) -> dict[str, Any]:
        """What a result depends on: data by their content. Raises ADDPError where they cannot be
        reached."""
        values = self._options.model_dump(mode="json")
        return {
            name: self._contents.key(name, values[name]) if name in KEYS else values[name]
            for name in settings_of(part, self._options)
        }

    def _places(self, part: str) -> dict[str, str | None]:
        """Where the data lie, for people."""
        values = self._options.model_dump(mode="json")
        return {name: values[name] for name in settings_of(part, self._options) if name in KEYS}

    def _evaluate(self, found: Assignment) -> None:
        def load() -> Any:
            catalog = open_catalog(self._run)
            try:
                self._contents = Contents()  # data may have changed since the last checkpoint
                settings = {part: self._settings(part) for part in found.parts}
            except StorageError as error:
                self._endure(error)
                return None
            try:
                return *catalog.trained(found.step, self._weights), settings
            except (
                Damaged,
                ObjectMissing,
                OSError,
            ) as error:  # or removed by the run since it was listed
                self._refuse(found.step, found.mark, str(error))
            except StorageError as error:
                self._endure(error)
            return None

        loaded = self._collectives.broadcast_from_rank0(load)
        if loaded is None:
            return
        network, manifest, settings = loaded
        task = Task(
            self._collectives,
            self._device,
            self._options,
            self._config,
            found.step,
            network,
            manifest,
            self._weights,
            self._work / step_folder(found.step),
            self._contents,
            self._tokenizer,
        )
        for number, part in enumerate(found.parts, 1):
            started = time.time()
            self._say(f"step {found.step}: {part}, part {number} of {len(found.parts)}")
            outcome = PARTS[part].run(task)
            result = {
                "step": found.step,
                "part": part,
                "weights": self._weights,
                "figures": outcome.figures,
                "checkpoint": manifest.fingerprint,
                "left_out": manifest.skipped,
                "settings": settings[part],
                "places": self._places(part),
                "made": {
                    "host": os.uname().nodename,
                    "process": os.getpid(),
                    "ranks": self._collectives.world_size,
                    "seconds": round(time.time() - started, 2),
                    "time": time.time(),
                    "torch": torch.__version__,
                },
            }
            self._collectives.broadcast_from_rank0(partial(self._publish, result, outcome.images))
        if not self._keep_samples:
            task.remove_samples()

    def _publish(self, result: dict[str, Any], images: dict[str, bytes]) -> None:
        """On rank 0."""
        step, part = result["step"], result["part"]
        while True:
            try:
                if not StoredCourse(self._store).is_current(result):
                    self._say(
                        f"step {step}: the run has left this checkpoint; the result of {part} is "
                        "dropped"
                    )
                elif not publish(self._store, result, images):
                    self._say(f"step {step}: another evaluator published {part} meanwhile")
                return
            except StorageError as error:
                self._endure(error)

    def _say(self, line: str) -> None:
        """Once, by rank 0."""
        if self._collectives.rank == 0:
            print(f"{self._run}: {line}", file=sys.stderr, flush=True)


def _opened(run: str) -> Catalog | None:
    """None while the run has not begun."""
    try:
        return open_catalog(run)
    except ConfigError:
        return None
