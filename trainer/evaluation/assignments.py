"""Which checkpoint an evaluator measures next: it looks for one that lacks results, and claims it.

run's store           checkpoints, results, claims of other evaluators
   |
Choice                the checkpoints that were asked for
   |  without those that are complete, refused, or claimed by another evaluator
Assignment            one checkpoint, and its benchmarks that lack a result
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.progress import Progress
from data_pipeline.storage import StorageError, Store, open_store
from model.errors import ConfigError
from trainer.checkpointing.catalog import Catalog, open_catalog
from trainer.distributed.claims import Claim, Claims
from trainer.evaluation.course import Course, StoredCourse
from trainer.evaluation.options import EvaluationOptions, WhichCheckpoints
from trainer.evaluation.results import FOLDER, read_results, suffix
from trainer.evaluation.settings import ResultSettings
from trainer.evaluation.trained import is_done, is_lasting
from trainer.formats import Weights
from trainer.run_folder import step_folder

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
        """Choose among all checkpoints.

        steps: those of all checkpoints. refused: those of checkpoints that cannot be measured.
        Raises ADDPError, also where there is no such checkpoint.
        """
        if self._step is not None:
            return [catalog.known(self._step)] if self._step not in refused else []
        if self._every is None:
            if self._newest is None or self._newest in refused:
                self._newest = catalog.newest_valid(but=refused)
            return [self._newest]
        return sorted(s for s in steps if s % self._every == 0 and s not in refused)


class Assignments:
    """The work of one evaluator, on rank 0. Any number of evaluators may watch one run: a claim on
    the run's store keeps two of them from doing the same work."""

    def __init__(self, run: str, request: Request, settings: ResultSettings) -> None:
        self._run, self._request, self._settings = run, request, settings
        self._choose = Choice(request.which)
        self._store: Store = open_store(run)
        self._claims = Claims(self._store, request.lease)
        self._claim: Claim | None = None
        self._pause = min(request.lease / 4, _LONGEST_WAIT)
        # The marks of checkpoints, by step. They count as long as the mark stays the same: with
        # another mark, another checkpoint stands under that step.
        self._refused: dict[int, Any] = {}  # damaged, removed meanwhile, or left by a rewind
        self._complete: dict[int, Any] = {}  # with all results

    def next(self) -> Assignment | None:
        """Wait for a checkpoint that lacks results, and claim it; None when there will be no more.

        Raises ADDPError.
        """
        what = "a checkpoint" if self._request.which.follow else "another evaluator"
        with Progress(f"{self._run}: waiting for {what}", None, "measured") as progress:
            while True:
                try:
                    assignment, finished = self._look()
                except StorageError as error:
                    self.endure(error)
                    continue
                if assignment is not None or finished:
                    return assignment
                progress.set(len(self._complete))
                self._settings.contents.forget_listings()
                time.sleep(self._pause)

    def release(self) -> None:
        """Give up the claim on the assignment, whether it is done or not."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def refuse(self, step: int, mark: Any, reason: str) -> None:
        """Leave a checkpoint out, for as long as it stands under its step, and print why."""
        self._refused[step] = mark
        self.say(f"step {step} is left out: {reason}")

    def endure(self, error: StorageError) -> None:
        """Wait a while if the run is followed and its store may come back.

        Otherwise, as for refused credentials, the error is raised.
        """
        if not self._request.which.follow or is_lasting(self._run, error):
            raise error
        self.say(f"{error}; tries again")
        time.sleep(self._pause)

    def say(self, line: str) -> None:
        """Print a line about the run."""
        print(f"{self._run}: {line}", file=sys.stderr, flush=True)

    def _look(self) -> tuple[Assignment | None, bool]:
        """Look for work once.

        Returns the work that is claimed now, if any, and whether there will be no more.
        """
        done = is_done(self._run)  # before the list: nothing comes after it
        catalog = _opened(self._run)
        if catalog is None:
            return None, False
        course, waiting = StoredCourse(self._store), False
        refused = [step for step, mark in self._refused.items() if course.marks.get(step) == mark]
        for step in self._choose(catalog, course.marks, refused):
            mark = course.marks.get(step)
            if course.is_left(step):
                self.refuse(step, mark, "it was trained on data that a rewind leaves out")
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
            self.release()
        return None, not waiting and (done or not self._request.which.follow)

    def _missing(self, step: int, course: Course) -> tuple[str, ...]:
        """Find the benchmarks that have no result of this checkpoint.

        Raises ConfigError where a result was made with other options.
        """
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


def _opened(run: str) -> Catalog | None:
    """The run's checkpoints; None while the run has not begun."""
    try:
        return open_catalog(run)
    except ConfigError:
        return None
