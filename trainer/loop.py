"""The training loop of one rank: steps, saves, rewinds, the end.

`trainer/startup.py` makes the `Setup` that a `Trainer` works with, and restores the checkpoint that
it goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from model.errors import ADDPError
from trainer import records
from trainer.borders import Border, Borders
from trainer.checkpointing.format import Manifest
from trainer.checkpointing.restore import Restored
from trainer.checkpointing.retention import leave_out
from trainer.checkpointing.saver import Saver
from trainer.checkpointing.stop_object import StopObject
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.ending import conclude, end_line, wait_for_copies
from trainer.engine.engine import Engine, StepResult
from trainer.metrics import Metrics, metric_row
from trainer.micro_batches import MicroBatch, MicroBatches, runs_ahead
from trainer.objectives.base import Objective
from trainer.objectives.counting import Operations
from trainer.prefetch import Prefetch
from trainer.resilience.health import ADVICE, Diverged, Spike, answer_to, judge
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.state import Row, TrainerState, data_step, rewinds_before
from trainer.resilience.stopping import Preempted, StopRequest, first_cause
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import RunFolder
from trainer.schedule import learning_rate
from trainer.start_times import StartTimes
from trainer.timing import StepTimes, Stopwatch

_AHEAD = 2  # steps whose data are fetched before it is their turn


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a trainer works with, as `trainer.startup.set_up` makes it.

    run: the run's id. attempt: the name of this start. identity: what checkpoints of the run share.
    total: steps of the whole run. operations: of one image. restore: loads the newest valid
    checkpoint of at most that step. has_checkpoint: whether there is one, asked on rank 0 alone.
    uploader, stop_object, metrics: on rank 0 alone. times: of this start, up to the loop.
    """

    config: RunConfig
    folder: RunFolder
    run: str
    attempt: str
    identity: dict[str, Any]
    total: int
    objective: Objective
    operations: Operations
    device: torch.device
    collectives: Collectives
    engine: Engine
    prefetch: Prefetch
    restore: Callable[[int], Restored]
    has_checkpoint: Callable[[int], bool]
    saver: Saver
    uploader: Uploader | None
    stop_object: StopObject | None
    metrics: Metrics | None
    heartbeat: Heartbeat
    stop: StopRequest
    threads: ThreadWatch
    times: StartTimes


class Trainer:
    """One rank of a run. Every method is called on all ranks together.

    restored: the checkpoint that the engine holds now.
    """

    def __init__(self, setup: Setup, restored: Restored) -> None:
        self._setup = setup
        self._config, self._folder = setup.config, setup.folder
        self._collectives, self._engine, self._saver = setup.collectives, setup.engine, setup.saver
        self._borders = Borders(
            setup.collectives, setup.saver, setup.stop, setup.heartbeat, self._lost_thread
        )
        self._inputs = MicroBatches(
            setup.objective,
            setup.device,
            setup.config.seed,
            ahead=runs_ahead(setup.config, setup.objective, setup.device),
        )
        self._forward, self._times = Stopwatch(setup.device.type == "cuda"), StepTimes()
        # Where the run stands; a rewind sets it anew.
        self._step = self._saved_step = restored.step
        self._rewinds = restored.rewinds
        self._state = _state_of(restored)
        self._unread: list[StepResult] = []  # of the latest steps; their numbers are on the device
        self._state.started()

    def train(self) -> None:
        """Go on to the end of the run. Raises Preempted once it has saved because it was asked to
        stop; Diverged; SaveFailed; and what restoring and the data raise."""
        if self._step == 0 and self._config.health.spikes == "rewind":
            self._save()  # so that there is something to go back to
        while self._step < self._setup.total:
            batches, *ahead = self._fetch()
            following = ahead[0] if ahead else None
            border = self._borders.cross(self._step, batches, following)
            if border.ends_run:
                self._end_early(border)
            self._train_step(batches, following, border.waited)
            if self._is_due(self._config.log_every):
                self._log_and_check_health()
            if self._is_due(self._config.checkpoint.every):
                self._save()
        self._finish()

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._setup.total

    # A step.

    def _fetch(self) -> list[Future[list[Any]]]:
        """The batches of this step, and those of the two after it: the ranks agree a step ahead on
        which data are here, and these have had a step to come."""
        last = min(self._step + _AHEAD, self._setup.total - 1)
        steps = range(self._step, last + 1)
        return self._setup.prefetch.get([data_step(self._rewinds, step) for step in steps])

    def _lost_thread(self) -> ADDPError | None:
        uploader = self._setup.uploader
        return self._setup.threads.lost or (uploader.lost if uploader else None)

    def _train_step(
        self, batches: Future[list[Any]], following: Future[list[Any]] | None, waited: float
    ) -> None:
        """Take one optimizer step. following: the batches of the next one, which may not be here
        yet. waited: seconds for which the step has waited for its data."""
        starts = not self._setup.times.complete
        if starts:
            self._setup.times.done("first batch")
        self._setup.heartbeat.beat("step", self._step)
        started, after = time.perf_counter(), None
        if following and following.done() and not following.exception():
            after = self._micro_batches(self._step + 1, following)[0]
        self._unread.append(
            self._engine.optimizer_step(
                self._inputs.inputs(self._micro_batches(self._step, batches), after),
                self._learning_rate(self._step),
                self._forward,
                before_backward=self._inputs.make_ahead,
            )
        )
        self._step += 1
        seconds = time.perf_counter() - started + waited
        self._times.add(seconds, waited)
        self._state.train_seconds += seconds
        if starts:
            self._end_start()

    def _end_start(self) -> None:
        """The first step of this start has ended: say how long all of it took."""
        times = self._setup.times
        if self._setup.device.type == "cuda":
            torch.cuda.synchronize()
        times.done("first step")
        times.complete = True
        if self._collectives.rank == 0:
            times.write(self._folder, self._step - 1)
        self._say(f"the first step ended after {times.line()}")

    def _learning_rate(self, step: int) -> float:
        config = self._config
        return learning_rate(
            config.learning_rate, config.schedule, self._setup.objective.epochs, step
        )

    def _micro_batches(self, step: int, batches: Future[list[Any]]) -> list[MicroBatch]:
        """Those of a step, whose data are here."""
        of_data = data_step(self._rewinds, step)
        first = of_data * self._config.batch.global_batch
        return [
            MicroBatch(first + offset, of_data, batch)
            for offset, batch in zip(self._setup.prefetch.offsets, batches.result(), strict=True)
        ]

    # A metric line, and what it shows.

    def _log_and_check_health(self) -> None:
        """Write the metric line of the steps since the last one, and judge them."""
        setup, rows = self._setup, self._read_losses()
        self._state.rows = []
        spike = judge(self._state, rows, self._step - len(rows), self._config.health)
        times = self._times.summary(self._forward.take(), self._collectives)
        if setup.metrics:
            setup.heartbeat.beat("save", self._step)  # storage may be slow: that is no slow step
            setup.metrics.record(
                metric_row(
                    step=self._step - 1,
                    rate=self._learning_rate(self._step - 1),
                    rows=rows,
                    times=times,
                    operations=setup.operations,
                    global_batch=self._config.batch.global_batch,
                    ranks=self._collectives.world_size,
                    applied=self._engine.applied,
                    state=self._state,
                    stalled=self._saver.stalled,
                )
            )
        if spike:
            self._answer(spike)

    def _read_losses(self) -> list[Row]:
        """Bring what came of the latest steps to the host, losses averaged over ranks. Only here
        does the host wait for the device. Returns the steps since the last metric line."""
        results, self._unread = self._unread, []
        if results:
            started, columns = time.perf_counter(), zip(*results, strict=True)
            own, norms, applied = (torch.stack(column).tolist() for column in columns)
            # A device that runs behind its host ends its steps here.
            self._state.train_seconds += time.perf_counter() - started
            rows = zip(self._collectives.mean(own), norms, applied, strict=True)
            self._state.rows += [Row(loss=loss, norm=n, applied=took) for loss, n, took in rows]
        return self._state.rows

    def _answer(self, spike: Spike) -> None:
        """Rewind, stop, or say that there was a spike. Raises Diverged where the run stops."""
        answer = answer_to(self._state, len(self._rewinds), self._config.health)
        if answer == "rewind" and self._can_go_back(spike.first):
            self._rewind(spike)
            return
        self._incident("spike", **spike._asdict(), action="none" if answer == "none" else "stop")
        if answer == "rewind":
            raise Diverged(
                f"steps {spike}; no checkpoint is left from before them, to go back to. Keep more "
                f"of them (checkpoint.keep, checkpoint.permanent_every). {ADVICE}"
            )
        if answer == "stop":
            raise Diverged(f"steps {spike}; rewound {len(self._rewinds)} times before. {ADVICE}")
        self._say(f"spike at steps {spike}")

    def _can_go_back(self, step: int) -> bool:
        """Whether a checkpoint of at most that step is left, once all saves have ended. Those that
        are kept may be younger than the spike, or a save may have failed."""
        heartbeat, now = self._setup.heartbeat, self._step
        self._borders.settle()
        self._saver.drain(lambda: heartbeat.beat("save", now))
        return self._collectives.broadcast_from_rank0(lambda: self._setup.has_checkpoint(step))

    def _rewind(self, spike: Spike) -> None:
        """Go back to a checkpoint before the spike, and leave its data out from there on. What was
        trained since is lost, and counted as that."""
        length = spike.last - spike.first + 1 + self._config.health.extra_skip_steps
        self._collectives.broadcast_from_rank0(lambda: leave_out(self._folder, spike.first, length))
        self._setup.heartbeat.beat("restore", self._step)
        restored, before = self._setup.restore(spike.first), self._state
        self._step = self._saved_step = restored.step
        self._rewinds, self._state, self._unread = restored.rewinds, _state_of(restored), []
        self._state.after_rewind(before)
        if self._setup.metrics:
            self._setup.metrics.rewind(self._step)
        self._incident("spike", **spike._asdict(), action="rewind", to=self._step, left_out=length)
        self._say(
            f"spike at steps {spike}; rewound to step {self._step}, "
            f"leaving out {length} steps of data"
        )

    # A save.

    def _save(self) -> None:
        """Begin to save the state as it is, unless it is saved already. Training waits for a copy
        to host memory and no longer: `trainer/checkpointing/saver.py` draws what follows. The save
        is committed at the first border where the ranks know that none is writing."""
        if self._saved_step == self._step and self._step:
            return
        self._setup.heartbeat.beat("save", self._step)
        self._read_losses()
        self._state.seen = time.time()
        self._saver.save(self._manifest())
        self._saved_step = self._step

    def _manifest(self) -> Manifest:
        """What a checkpoint states of the run, without its files."""
        setup, engine = self._setup, self._engine
        return Manifest(
            step=self._step,
            world_size=self._collectives.world_size,
            zero_stage=self._config.zero_stage,
            run_identity=setup.identity,
            parameters={name: list(shape) for name, shape in engine.partition.shapes.items()},
            export_prefix=setup.objective.export_prefix,
            state_keys=list(engine.state_keys),
            applied=engine.applied,
            scaler=engine.scaler(),
            skipped=rewinds_before(self._rewinds, self._step),
            trainer_state=self._state.model_dump(mode="json"),
            run=setup.run,
            config=self._config.model_dump(mode="json"),
        )

    # The end.

    def _complete_save(self) -> bool:
        """Save what is not saved yet, and wait until it stands, here and on the store. Returns on
        rank 0 whether the store has all of it. Raises SaveFailed."""
        heartbeat, step = self._setup.heartbeat, self._step
        self._save()
        self._saver.drain(lambda: heartbeat.beat("save", step))
        self._saver.require(step)
        return wait_for_copies(
            self._setup.uploader,
            self._config.checkpoint,
            self._collectives,
            alive=lambda: heartbeat.beat("end", step),
            say=self._say,
        )

    def _end_early(self, border: Border) -> NoReturn:
        """Save, and raise the reason: Preempted where the run was asked to stop, the error of the
        rank that cannot go on elsewhere."""
        own = str(border.error) if border.error else self._setup.stop.cause()
        told = self._collectives.all_gather(own)
        errors = [said for said in told if isinstance(said, str)]
        cause = None if errors else first_cause([said for said in told if said is not None])
        reason = cause.reason if cause else errors[0]
        if self._step:
            self._complete_save()
        self._incident("stopped", step=self._step, reason=reason)
        self._collectives.barrier()
        if border.error:
            raise border.error
        if cause is None:
            error = ADDPError(f"another rank ended: {reason}")
            error.exit_code = border.flags.failed
            raise error
        if self._collectives.rank == 0:
            self._folder.stop.unlink(missing_ok=True)  # else the next start would stop at once
        if self._setup.stop_object:
            self._setup.stop_object.remove()
        state = "saved" if self._step else "nothing to save yet"
        raise Preempted(
            f"at step {self._step} of {self._setup.total} ({reason}); {state}. "
            "Start it again to go on",
            cause.kind,
        )

    def _finish(self) -> None:
        """Publish the trained network, and mark the run as done."""
        self._borders.settle()
        uploader, copied = self._setup.uploader, self._complete_save()
        done = {"step": self._step, "run": self._setup.run, "start": self._setup.attempt}

        def end() -> None:
            if uploader and uploader.lost:
                raise uploader.lost
            conclude(self._folder, self._config.health, self._state, done)

        self._collectives.broadcast_from_rank0(end)
        if uploader and copied:
            uploader.announce_end()
        elif uploader:
            self._say(
                f"{self._config.checkpoint.upload} does not call the run complete; run it again to "
                "copy the rest"
            )
        if self._collectives.rank == 0:
            self._say(end_line(self._config, self._folder, self._step))

    def _say(self, line: str) -> None:
        if self._collectives.rank == 0:
            records.say(f"{self._config.run.name}: {line}")

    def _incident(self, event: str, **details: Any) -> None:
        if self._collectives.rank == 0:
            self._folder.incident({"event": event, **details})


def _state_of(restored: Restored) -> TrainerState:
    saved = restored.manifest
    return TrainerState.model_validate(saved.trainer_state) if saved else TrainerState()
