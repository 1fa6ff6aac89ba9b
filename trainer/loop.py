"""The training loop of one rank: steps, saves, rewinds, the end.

`trainer/startup.py` makes the `Setup` that a `Trainer` works with, and restores the checkpoint that
it goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from model.errors import ADDPError
from model.randomness import raw_bits
from trainer import records
from trainer.checkpointing.format import Manifest
from trainer.checkpointing.restore import Restored
from trainer.checkpointing.retention import leave_out
from trainer.checkpointing.saver import Saver
from trainer.checkpointing.stop_object import StopObject
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives, Flags
from trainer.ending import conclude, end_line, wait_for_copies
from trainer.engine.engine import Engine, StepResult
from trainer.metrics import Metrics, metric_row
from trainer.objectives.base import Inputs, Objective
from trainer.objectives.counting import Operations
from trainer.prefetch import Prefetch, failure
from trainer.resilience.health import ADVICE, Diverged, Spike, answer_to, judge
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.state import Row, TrainerState, data_step, rewinds_before
from trainer.resilience.stopping import Preempted, StopRequest, first_cause
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import RunFolder
from trainer.schedule import learning_rate
from trainer.start_times import StartTimes
from trainer.timing import StepTimes, Stopwatch

_LOOK = 0.5  # seconds between two agreements while data are awaited


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a trainer works with, as `trainer.startup.set_up` makes it.

    run: the run's id. attempt: the name of this start. identity: what checkpoints of the run share.
    total: steps of the whole run. operations: of one image. restore: loads the newest valid
    checkpoint of at most that step. uploader, stop_object, metrics: on rank 0 alone. times: of this
    start, up to the loop.
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
    saver: Saver
    uploader: Uploader | None
    stop_object: StopObject | None
    metrics: Metrics | None
    heartbeat: Heartbeat
    stop: StopRequest
    threads: ThreadWatch
    times: StartTimes


class Border(NamedTuple):
    """What the ranks have agreed on between two steps.

    error: why this rank cannot go on; None where it can. waited: seconds until all ranks had their
    data, or until the run had to end.
    """

    flags: Flags
    error: ADDPError | None
    waited: float

    @property
    def ends_run(self) -> bool:
        return self.flags.stop or self.flags.failed != 0


class Trainer:
    """One rank of a run. Every method is called on all ranks together.

    restored: the checkpoint that the engine holds now.
    """

    def __init__(self, setup: Setup, restored: Restored) -> None:
        self._setup = setup
        self._config, self._folder = setup.config, setup.folder
        self._collectives, self._engine, self._saver = setup.collectives, setup.engine, setup.saver
        self._forward, self._times = Stopwatch(setup.device.type == "cuda"), StepTimes()
        # Where the run stands; a rewind sets it anew.
        self._step = self._saved_step = restored.step
        self._rewinds = restored.rewinds
        self._state = _state_of(restored)
        self._unread: list[StepResult] = []  # of the latest steps; their losses are on the device
        self._state.started()

    def train(self) -> None:
        """Go on to the end of the run. Raises Preempted once it has saved because it was asked to
        stop; Diverged; SaveFailed; and what restoring and the data raise."""
        if self._step == 0 and self._config.health.spikes == "rewind":
            self._save()  # so that there is something to go back to
        while self._step < self._setup.total:
            batches = self._fetch()
            border = self._wait_at_border(batches)
            if border.ends_run:
                self._end_early(border)
            self._train_step(batches.result(), border.waited)
            if self._is_due(self._config.log_every):
                self._log_and_check_health()
            if self._is_due(self._config.checkpoint.every):
                self._save()
        self._finish()

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._setup.total

    # A step.

    def _fetch(self) -> Future[list[Any]]:
        """The batches of this step. Those of the next one are fetched behind them."""
        following = self._step + 1
        ahead = data_step(self._rewinds, following) if following < self._setup.total else None
        return self._setup.prefetch.get(data_step(self._rewinds, self._step), ahead)

    def _wait_at_border(self, batches: Future[list[Any]]) -> Border:
        """Wait until all ranks have their data, or the run has to end.

        No rank decides alone: one that stopped, saved or failed by itself would leave the others in
        an exchange that is never answered. Each says what it knows, and all take the largest of
        each flag. One such agreement, of four numbers, happens at every border between two steps:

                        stop   waiting   writing   failed
            rank 0       1        0         0         0      SIGTERM came here
            rank 1       0        1         0         0      its data are not here yet
            rank 2       0        0         1         0      its file of a checkpoint is not written
                       ------------------------------------
            all ranks    1        1         1         0      so all save and stop

        `waiting` makes all of them agree again, half a second later. Once nobody is `writing`, the
        checkpoint under way is committed. `failed` is the exit code of a rank that cannot go on.
        """
        setup, started = self._setup, time.perf_counter()
        setup.heartbeat.beat("data", self._step)
        while True:
            wait([batches], timeout=_LOOK)
            lost = setup.threads.lost or (setup.uploader.lost if setup.uploader else None)
            error = failure(batches) or lost
            flags = self._collectives.agree(
                Flags(
                    stop=setup.stop.cause() is not None,
                    waiting=not batches.done(),
                    writing=self._saver.writing,
                    failed=error.exit_code if error else 0,
                )
            )
            if not flags.writing:
                self._saver.commit()
            border = Border(flags, error, time.perf_counter() - started)
            if border.ends_run or not flags.waiting:
                return border
            # A store that is patiently tried again is no hang.
            setup.heartbeat.beat("data", self._step)

    def _train_step(self, batches: list[Any], waited: float) -> None:
        """Take one optimizer step. waited: seconds for which it has waited for its data."""
        starts = not self._setup.times.complete
        if starts:
            self._setup.times.done("first batch")
        self._setup.heartbeat.beat("step", self._step)
        started = time.perf_counter()
        inputs = self._micro_batches(batches)
        self._unread.append(
            self._engine.optimizer_step(inputs, self._learning_rate(self._step), self._forward)
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

    def _micro_batches(self, batches: list[Any]) -> Iterator[Inputs]:
        """Dropout is seeded by the index of a micro batch in the run's data, so that it depends
        neither on the rank that computes it nor on what was computed before."""
        config, step = self._config, data_step(self._rewinds, self._step)
        for offset, batch in zip(self._setup.prefetch.offsets, batches, strict=True):
            index = step * config.batch.global_batch + offset
            torch.manual_seed(int(raw_bits(config.seed, "dropout", index, 1, 1)[0, 0] >> 1))
            yield self._setup.objective.inputs(batch, step, self._setup.device)

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
        """Bring the losses of the latest steps to the host, averaged over ranks. Returns the steps
        since the last metric line."""
        results, self._unread = self._unread, []
        if results:
            own: Tensor = torch.stack([result.loss for result in results]).double()
            self._state.rows += [
                Row(loss=loss, norm=result.norm, applied=result.applied)
                for loss, result in zip(self._collectives.mean(own.tolist()), results, strict=True)
            ]
        return self._state.rows

    def _answer(self, spike: Spike) -> None:
        """Rewind, stop, or say that there was a spike. Raises Diverged where the run stops."""
        answer = answer_to(self._state, len(self._rewinds), self._config.health)
        if answer == "rewind":
            self._rewind(spike)
            return
        self._incident("spike", **spike._asdict(), action=answer)
        if answer == "stop":
            raise Diverged(f"steps {spike}; rewound {len(self._rewinds)} times before. {ADVICE}")
        self._say(f"spike at steps {spike}")

    def _rewind(self, spike: Spike) -> None:
        """Go back to a checkpoint before the spike, and leave its data out from there on. What was
        trained since is lost, and counted as that."""
        heartbeat, step = self._setup.heartbeat, self._step
        self._saver.drain(lambda: heartbeat.beat("save", step))
        length = spike.last - spike.first + 1 + self._config.health.extra_skip_steps
        self._collectives.broadcast_from_rank0(lambda: leave_out(self._folder, spike.first, length))
        heartbeat.beat("restore", step)
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
        is committed at the first border where no rank is writing (`_wait_at_border`)."""
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
