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
from trainer.distributed.claims import Claim, Claims
from trainer.distributed.collectives import Collectives
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.course import Course, StoredCourse
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints
from trainer.evaluation.results import FOLDER, Result, publish, read_results, suffix
from trainer.evaluation.settings import ResultSettings
from trainer.evaluation.task import Checkpoint, Task
from trainer.evaluation.trained import is_done, is_lasting
from trainer.run_folder import Weights, step_folder

_LONGEST_WAIT = 15.0  # seconds between two looks for work


class Request(NamedTuple):
    """What an evaluator is asked to do.

    benchmarks: their names. work: the folder for samples and caches. lease: seconds after which a
    dead evaluator's work is free. tokenizer: a copy of the run's tokenizer on this machine.
    """

    benchmarks: list[str]
    options: EvaluationOptions
    which: WhichCheckpoints
    weights: Weights
    work: Path
    lease: float
    keep_samples: bool = False
    tokenizer: Path | None = None


class Assignment(NamedTuple):
    """What all ranks do next.

    benchmarks: those asked for that have no result. mark: what tells the checkpoint from another
    one under the same step.
    """

    step: int
    benchmarks: tuple[str, ...]
    mark: Any


class Choice:
    """Which checkpoints are measured: one step, the newest valid one, or all at multiples of a
    step, oldest first."""

    def __init__(self, which: WhichCheckpoints) -> None:
        self._step = which.checkpoint
        self._every = 1 if which.follow and which.every is None else which.every
        self._newest: int | None = None

    def __call__(
        self, catalog: Catalog, steps: Collection[int], refused: Collection[int]
    ) -> list[int]:
        """steps: of all checkpoints. refused: those that cannot be measured."""
        if self._step is not None:
            return [catalog.known(self._step)] if self._step not in refused else []
        if self._every is None:
            if self._newest is None or self._newest in refused:
                self._newest = catalog.newest_valid(but=refused)
            return [self._newest]
        return sorted(s for s in steps if s % self._every == 0 and s not in refused)


class Evaluator:
    """Measures the checkpoints of a run: rank 0 decides, all ranks compute.

    Any number of evaluators may watch one run: a claim on the run's store keeps two of them from
    doing the same work.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        request: Request,
        collectives: Collectives,
        device: torch.device,
    ) -> None:
        self._run, self._config, self._request = run, config, request
        self._collectives, self._device = collectives, device
        self._settings = ResultSettings(request.options, config)
        self._choose = Choice(request.which)
        self._store: Store = open_store(run)
        self._claims = Claims(self._store, request.lease)
        self._claim: Claim | None = None
        self._pause = min(request.lease / 4, _LONGEST_WAIT)
        # The marks of checkpoints, by step. They count as long as the mark stays the same: with
        # another mark, another checkpoint stands under that step.
        self._refused: dict[int, Any] = {}  # damaged, removed meanwhile, or left by a rewind
        self._complete: dict[int, Any] = {}  # with all results

    def evaluate(self) -> None:
        """Work until nothing is left to do. Raises ADDPError."""
        while True:
            assignment = self._collectives.broadcast_from_rank0(self._next)
            if assignment is None:
                return
            try:
                self._measure(assignment)
            finally:
                if self._claim is not None:
                    self._claim.release()
                    self._claim = None

    def _next(self) -> Assignment | None:
        """Wait for a checkpoint that lacks results, and claim it. On rank 0.

        Returns None when there will be no more.
        """
        what = "a checkpoint" if self._request.which.follow else "another evaluator"
        with Progress(f"{self._run}: waiting for {what}", None, "measured") as progress:
            while True:
                try:
                    assignment, finished = self._look()
                except StorageError as error:
                    self._endure(error)
                    continue
                if assignment is not None or finished:
                    return assignment
                progress.set(len(self._complete))
                self._settings.contents.forget_listings()
                time.sleep(self._pause)

    def _look(self) -> tuple[Assignment | None, bool]:
        """(work that is claimed now, whether there will be no more)."""
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
            self._claim = self._claims.take(f"{step_folder(step)}{suffix(self._request.weights)}")
            if self._claim is None:
                waiting = True  # for another evaluator: should it die, the work is ours
                continue
            missing = self._missing(step, course)  # again: another evaluator may just have ended
            if missing:
                return Assignment(step, missing, mark), False
            self._claim.release()
            self._claim = None
        return None, not waiting and (done or not self._request.which.follow)

    def _missing(self, step: int, course: Course) -> tuple[str, ...]:
        """The benchmarks that have no result of this checkpoint. Raises ConfigError where a result
        was made with other options."""
        results = {
            result.benchmark: result
            for result in read_results(self._store, step)
            if result.step == step
            and result.weights == self._request.weights
            and course.is_current(result)
        }
        wanted = self._request.benchmarks
        for name in wanted:
            if name in results and (differences := self._settings.differences(results[name])):
                raise ConfigError(
                    f"{self._run}: {FOLDER}/{step_folder(step)} has a result of {name} with other "
                    f"options ({', '.join(differences)}); remove it to measure anew, or use the "
                    "same options"
                )
        return tuple(name for name in wanted if name not in results)

    def _measure(self, assignment: Assignment) -> None:
        """Run the benchmarks of an assignment and publish each result, on all ranks."""
        step, request = assignment.step, self._request
        loaded = self._collectives.broadcast_from_rank0(lambda: self._load(assignment))
        if loaded is None:
            return
        checkpoint, settings = loaded
        task = Task(
            checkpoint,
            config=self._config,
            options=self._settings.options,
            collectives=self._collectives,
            device=self._device,
            work=request.work / step_folder(step),
            contents=self._settings.contents,
            tokenizer=request.tokenizer,
        )
        for number, name in enumerate(assignment.benchmarks, 1):
            self._say(f"step {step}: {name}, benchmark {number} of {len(assignment.benchmarks)}")
            started = time.time()
            outcome = BENCHMARKS[name].run(task)
            result = Result(
                step=step,
                benchmark=name,
                weights=request.weights,
                metrics=outcome.metrics,
                checkpoint=checkpoint.manifest.fingerprint,
                left_out=checkpoint.manifest.skipped,
                settings=settings[name],
                locations=self._settings.locations(name),
                made=self._maker(started),
            )
            self._collectives.broadcast_from_rank0(partial(self._publish, result, outcome.images))
        if not request.keep_samples:
            task.remove_samples()

    def _load(self, assignment: Assignment) -> tuple[Checkpoint, dict[str, dict[str, Any]]] | None:
        """The checkpoint, and the settings of each result. On rank 0.

        Returns None where the checkpoint cannot be had, now or ever.
        """
        step, weights = assignment.step, self._request.weights
        catalog = open_catalog(self._run)
        try:
            self._settings.look_again()
            settings = {name: self._settings.of(name) for name in assignment.benchmarks}
        except StorageError as error:
            self._endure(error)
            return None
        try:
            network, manifest = catalog.trained(step, weights)
            return Checkpoint(step, weights, network, manifest), settings
        except (Damaged, ObjectMissing, OSError) as error:  # or the run has removed it since
            self._refuse(step, assignment.mark, str(error))
        except StorageError as error:
            self._endure(error)
        return None

    def _maker(self, started: float) -> dict[str, Any]:
        return {
            "host": os.uname().nodename,
            "process": os.getpid(),
            "ranks": self._collectives.world_size,
            "seconds": round(time.time() - started, 2),
            "time": time.time(),
            "torch": torch.__version__,
        }

    def _publish(self, result: Result, images: dict[str, bytes]) -> None:
        """Write a result, unless the run has left its checkpoint meanwhile. On rank 0."""
        step, name = result.step, result.benchmark
        while True:
            try:
                if not StoredCourse(self._store).is_current(result):
                    self._say(
                        f"step {step}: the run has left this checkpoint; the result of {name} is "
                        "dropped"
                    )
                elif not publish(self._store, result, images):
                    self._say(f"step {step}: another evaluator published {name} meanwhile")
                return
            except StorageError as error:
                self._endure(error)

    def _refuse(self, step: int, mark: Any, reason: str) -> None:
        """Leave a checkpoint out for as long as it stands under its step."""
        self._refused[step] = mark
        self._say(f"step {step} is left out: {reason}")

    def _endure(self, error: StorageError) -> None:
        """Wait a while where a run is followed and its store may come back; raise the error
        otherwise, as for refused credentials."""
        if not self._request.which.follow or is_lasting(self._run, error):
            raise error
        self._say(f"{error}; tries again")
        time.sleep(self._pause)

    def _say(self, line: str) -> None:
        """Print a line once, by rank 0."""
        if self._collectives.rank == 0:
            print(f"{self._run}: {line}", file=sys.stderr, flush=True)


def _opened(run: str) -> Catalog | None:
    """The run's checkpoints; None while the run has not begun."""
    try:
        return open_catalog(run)
    except ConfigError:
        return None
