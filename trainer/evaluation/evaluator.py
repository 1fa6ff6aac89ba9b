"""Measures the checkpoints of a run and publishes results: rank 0 decides, all ranks compute."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import torch

from data_pipeline.storage import ObjectMissing, StorageError, open_store
from model.dense.torchvision_parts import prepare
from trainer.checkpointing.catalog import open_catalog
from trainer.checkpointing.format import Damaged
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.evaluation.assignments import Assignment, Assignments, Request
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.course import StoredCourse
from trainer.evaluation.results import Result, publish
from trainer.evaluation.settings import ResultSettings
from trainer.evaluation.task import Checkpoint, Task
from trainer.objectives.registry import OBJECTIVES
from trainer.run_folder import step_folder


class Evaluator:
    """Does what was requested for the checkpoints of a run, on all ranks together."""

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
        self._store = open_store(run)
        self._settings = ResultSettings(request.options, config)
        self._assignments = Assignments(run, request, self._settings)  # used by rank 0 alone

    def evaluate(self) -> None:
        """Work until nothing is left to do. Raises ADDPError."""
        if OBJECTIVES[self._config.objective].network_kind in ("segmenter", "detector"):
            prepare()  # rank 0 sends such a network, and where it arrives torchvision is imported
        while True:
            assignment = self._collectives.broadcast_from_rank0(self._assignments.next)
            if assignment is None:
                return
            try:
                self._measure(assignment)
            finally:
                self._assignments.release()

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
            settings=settings,
            tokenizer=request.tokenizer,
        )
        for number, name in enumerate(assignment.benchmarks, 1):
            if self._collectives.rank == 0:
                total = len(assignment.benchmarks)
                self._assignments.say(f"step {step}: {name}, benchmark {number} of {total}")
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
        task.remove_kept()
        if not request.keep_samples:
            task.remove_samples()

    def _load(self, assignment: Assignment) -> tuple[Checkpoint, dict[str, dict[str, Any]]] | None:
        """Load the checkpoint, and find the settings of each result. Rank 0 alone calls this.

        Returns None where the checkpoint cannot be had, now or ever.
        """
        step, weights = assignment.step, self._request.weights
        catalog = open_catalog(self._run)
        try:
            self._settings.look_again()
            settings = {name: self._settings.of(name) for name in assignment.benchmarks}
        except StorageError as error:
            self._assignments.endure(error)
            return None
        try:
            network, manifest = catalog.trained(step, weights)
            return Checkpoint(step, weights, network, manifest), settings
        except (Damaged, ObjectMissing, OSError) as error:  # or the run has removed it since
            self._assignments.refuse(step, assignment.mark, str(error))
        except StorageError as error:
            self._assignments.endure(error)
        return None

    def _maker(self, started: float) -> dict[str, Any]:
        """What a result says of who made it. started: when its benchmark began."""
        return {
            "host": os.uname().nodename,
            "process": os.getpid(),
            "ranks": self._collectives.world_size,
            "seconds": round(time.time() - started, 2),
            "time": time.time(),
            "torch": torch.__version__,
        }

    def _publish(self, result: Result, images: dict[str, bytes]) -> None:
        """Write a result, unless the run has left its checkpoint meanwhile. Rank 0 alone calls
        this."""
        step, name = result.step, result.benchmark
        while True:
            try:
                if not StoredCourse(self._store).is_current(result):
                    self._assignments.say(
                        f"step {step}: the run has left this checkpoint; the result of {name} is "
                        "dropped"
                    )
                elif not publish(self._store, result, images):
                    self._assignments.say(
                        f"step {step}: another evaluator published {name} meanwhile"
                    )
                return
            except StorageError as error:
                self._assignments.endure(error)
