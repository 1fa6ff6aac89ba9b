"""The training loop of one rank: restore, steps, saves, rewinds, the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch

from data_pipeline.storage import Store, open_store
from model.errors import ADDPError
from model.randomness import raw_bits
from model.transformer import recompute_blocks
from trainer import costs, records
from trainer.checkpointing.expected import Expected, last_config
from trainer.checkpointing.format import Manifest
from trainer.checkpointing.ownership import enter
from trainer.checkpointing.restore import Restored, restore
from trainer.checkpointing.retention import leave_out
from trainer.checkpointing.saver import Saver
from trainer.checkpointing.upload import Uploader
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives, Flags
from trainer.ending import conclude, end_line
from trainer.engine.engine import Engine
from trainer.metrics import Metrics
from trainer.objectives.registry import Inputs, Objective, given_fingerprints
from trainer.prefetch import Prefetch, failure
from trainer.resilience.health import ADVICE, Diverged, Spike, judge
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.state import Row, TrainerState, data_step, rewinds_before
from trainer.resilience.stopping import Preempted, StopRequest
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import RunFolder
from trainer.schedule import learning_rate, total_steps
from trainer.startup import (
    describe_run,
    export_prefix,
    identify_run,
    make_deterministic,
    same_on_all,
    take_up,
)
from trainer.timing import StepTimes, Stopwatch


class Run:
    """Use as a context."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        collectives: Collectives,
        accumulation: int,
        heartbeat: Heartbeat,
        stop: StopRequest,
        attempt: str,
        device: torch.device,
    ) -> None:
        if config.deterministic:
            make_deterministic()
        self._config, self._objective, self._collectives, self._device = (
            config,
            objective,
            collectives,
            device,
        )
        self._heartbeat, self._stop, self._attempt = heartbeat, stop, attempt
        self._folder = RunFolder(config.run)
        self._run_identity = identify_run(config, objective)
        same_on_all(collectives, config, {**self._run_identity, **given_fingerprints(objective)})
        self._total = total_steps(config.schedule, objective.epochs)
        recompute_blocks(objective.network, config.recompute_every)
        self._engine = Engine(objective.network, config, accumulation, collectives.world_size)
        self._store: Store | None = (
            open_store(config.checkpoint.upload) if config.checkpoint.upload else None
        )
        self._prefetch = Prefetch(objective, collectives.rank, accumulation, config.batch.micro)
        self._own, self._times = Stopwatch(device.type == "cuda"), StepTimes()
        self._operations = (
            costs.image_operations(config) if collectives.rank == 0 else costs.Operations(0, 0)
        )
        self._exit = ExitStack()
        self._threads = self._exit.enter_context(ThreadWatch(self._folder))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._prefetch.close()
        self._exit.__exit__(kind, value, trace)
        if value is None or isinstance(
            value, ADDPError
        ):  # else other ranks may be in the middle of an exchange
            self._engine.close()

    def go(self) -> None:
        """To the end of the run. Raises Preempted, Diverged, SaveFailed and what restoring and the
        data raise."""
        config, collectives = self._config, self._collectives
        self._heartbeat.beat("restore", 0)
        self._id, owner, self._store = enter(
            self._folder,
            self._store,
            lease=config.checkpoint.lease,
            collectives=collectives,
            heartbeat=self._heartbeat,
            attempt=self._attempt,
            say=self._say,
        )
        if owner:
            self._exit.callback(owner.release)
        self._uploader = Uploader(self._folder, config.checkpoint, owner.confirm) if owner else None
        self._saver = Saver(
            self._folder,
            self._engine,
            collectives,
            config.checkpoint,
            attempt=self._attempt,
            uploader=self._uploader,
        )
        self._exit.callback(self._saver.close)
        self._expected = Expected(
            self._run_identity,
            self._id,
            config,
            collectives.broadcast_from_rank0(lambda: last_config(self._folder)),
        )
        found = self._restore(None)
        self._state.started()
        collectives.broadcast_from_rank0(
            lambda: take_up(
                self._folder,
                self._id,
                found,
                self._total,
                collectives.world_size,
                self._say,
                self._objective.beginning,
            )
        )
        if collectives.rank == 0:
            describe_run(self._folder, config, collectives.world_size, self._operations)
        if self._uploader and self._step < self._total:
            self._uploader.withdraw_end()
        if self._uploader and self._step:
            self._uploader.offer(
                self._step
            )  # where the last start did not bring it; what is there is not sent again
        self._metrics = (
            Metrics(self._folder, config, self._step, self._total)
            if collectives.rank == 0
            else None
        )
        if self._metrics:
            self._exit.enter_context(self._metrics)
        if self._step == 0 and config.health.spikes == "rewind":
            self._save()  # so that there is something to go back to
        while self._step < self._total:
            batches = self._next_data()
            self._train_step(batches)
            if self._step % config.log_every == 0 or self._step == self._total:
                self._look_back()
            if self._step % config.checkpoint.every == 0 or self._step == self._total:
                self._save()
        self._finish()

    def _restore(self, latest: int | None) -> Restored:
        found = restore(
            self._folder,
            self._engine,
            self._collectives,
            self._expected,
            store=self._store,
            attempt=self._attempt,
            latest=latest,
        )
        for reason in found.refused:
            self._say(f"refused a checkpoint: {reason}")
            if self._collectives.rank == 0:
                self._folder.incident({"event": "checkpoint refused", "reason": reason})
        self._step, self._rewinds = found.step, found.rewinds
        self._saved = self._step
        self._state = (
            TrainerState.model_validate(found.manifest.trainer_state)
            if found.manifest
            else TrainerState()
        )
        self._losses: list[
            torch.Tensor
        ] = []  # of steps that are not in progress.rows yet, on their device
        self._norms: list[tuple[float, bool]] = []
        return found

    def _say(self, line: str) -> None:
        if self._collectives.rank == 0:
            records.say(f"{self._config.run.name}: {line}")

    def _next_data(self) -> list[Any]:
        """The next step's batches, once all ranks have theirs. Saves and raises where a rank was
        asked to stop, or its data failed."""
        self._heartbeat.beat("data", self._step)
        started = time.perf_counter()
        ahead = data_step(self._rewinds, self._step + 1) if self._step + 1 < self._total else None
        future = self._prefetch.get(data_step(self._rewinds, self._step), ahead)
        while True:
            wait([future], timeout=0.5)
            failed = (
                failure(future)
                or self._threads.lost
                or (self._uploader.lost if self._uploader else None)
            )
            flags = self._collectives.agree(
                Flags(
                    stop=self._stop.reason() is not None,
                    waiting=not future.done(),
                    writing=self._saver.writing,
                    failed=failed.exit_code if failed else 0,
                )
            )
            if not flags.writing:
                self._saver.commit()
            if flags.stop or flags.failed:
                self._end_early(flags, failed)
            if not flags.waiting:
                self._waited = time.perf_counter() - started
                return future.result()
            self._heartbeat.beat(
                "data", self._step
            )  # a store that is patiently tried again is no hang

    def _train_step(self, batches: list[Any]) -> None:
        self._heartbeat.beat("step", self._step)
        started = time.perf_counter()
        rate = learning_rate(
            self._config.learning_rate, self._config.schedule, self._objective.epochs, self._step
        )
        result = self._engine.optimizer_step(self._micro_batches(batches), rate, self._own)
        self._losses.append(result.loss)
        self._norms.append((result.norm, result.applied))
        self._step += 1
        seconds = time.perf_counter() - started + self._waited
        self._times.add(seconds, self._waited)
        self._state.train_seconds += seconds

    def _micro_batches(self, batches: list[Any]) -> Iterator[Inputs]:
        """Dropout is keyed by the place of a micro batch in the run's data, so that it does not
        depend on who computes it, nor on what was computed before."""
        step = data_step(self._rewinds, self._step)
        for offset, batch in zip(self._prefetch.parts, batches, strict=True):
            place = step * self._config.batch.global_batch + offset
            torch.manual_seed(int(raw_bits(self._config.seed, "dropout", place, 1, 1)[0, 0] >> 1))
            yield self._objective.inputs(batch, step, self._device)

    def _collect(self) -> list[Row]:
        """All ranks together: bring the latest steps' losses, averaged over ranks, to the host."""
        losses = (
            self._collectives.mean(torch.stack(self._losses).double().tolist())
            if self._losses
            else []
        )
        rows = [
            Row(loss=loss, norm=n, applied=a)
            for loss, (n, a) in zip(losses, self._norms, strict=True)
        ]
        self._losses, self._norms = [], []
        self._state.rows += rows
        return self._state.rows

    def _look_back(self) -> None:
        """At a metric line: judge the steps since the last one, and write it."""
        rows = self._collect()
        self._state.rows = []
        first = self._step - len(rows)
        spike = judge(self._state, rows, first, self._config.health)
        times = self._times.summary(self._own.take(), self._collectives)
        if self._metrics:
            finite = [row.loss for row in rows if row.applied]
            images = self._config.batch.global_batch / times["seconds_per_step"]
            peak, each = costs.device_peak(), images / self._collectives.world_size
            p, schedule = self._state, self._config.schedule
            self._metrics.record(
                {
                    "step": self._step - 1,
                    "loss": sum(finite) / len(finite) if finite else float("nan"),
                    "lr": learning_rate(
                        self._config.learning_rate, schedule, self._objective.epochs, self._step - 1
                    ),
                    "grad_norm": rows[-1].norm,
                    "images_per_second": images,
                    **times,
                    "tflops": self._operations.total * each / 1e12,
                    "mfu": self._operations.total * each / peak if peak else None,
                    "applied_steps": self._engine.applied,
                    "skipped_steps": p.nonfinite,
                    "train_seconds": p.train_seconds,
                    "lost_seconds": p.lost_seconds,
                    "starts": p.starts,
                    "save_stall_seconds": self._saver.stalled,
                }
            )
        if spike:
            self._spiked(spike)

    def _spiked(self, spike: Spike) -> None:
        """Rewind before the spike and leave its data out, or say so only. Raises Diverged."""
        health = self._config.health
        hopeless = self._state.in_a_row >= health.skips
        record = {
            "event": "spike",
            "first": spike.first,
            "last": spike.last,
            "reason": spike.reason,
        }
        if health.spikes != "rewind" or len(self._rewinds) >= health.rewinds:
            if self._collectives.rank == 0:
                self._folder.incident(
                    {
                        **record,
                        "action": "stop" if hopeless or health.spikes == "rewind" else "none",
                    }
                )
            if hopeless or health.spikes == "rewind":
                raise Diverged(
                    f"steps {spike}; rewound {len(self._rewinds)} times before. {ADVICE}"
                )
            self._say(f"spike at steps {spike}")
            return
        self._saver.drain()
        length = spike.last - spike.first + 1 + health.skip
        self._collectives.broadcast_from_rank0(lambda: leave_out(self._folder, spike.first, length))
        before = self._state
        self._restore(spike.first)
        lost = before.train_seconds - self._state.train_seconds
        self._state.lost_seconds, self._state.seen = before.lost_seconds + lost, before.seen
        self._state.starts = before.starts
        if self._metrics:
            self._metrics.rewind(self._step)
            self._folder.incident(
                {**record, "action": "rewind", "to": self._step, "left_out": length}
            )
        self._say(
            f"spike at steps {spike}; rewound to step {self._step}, leaving out {length} steps of "
            "data"
        )

    def _save(self) -> None:
        if self._saved == self._step and self._step:
            return
        self._heartbeat.beat("save", self._step)
        self._collect()
        self._state.seen = time.time()
        self._saver.save(
            Manifest(
                step=self._step,
                world_size=self._collectives.world_size,
                zero_stage=self._config.zero_stage,
                run_identity=self._run_identity,
                parameters={k: list(v) for k, v in self._engine.partition.shapes.items()},
                export_prefix=export_prefix(self._objective),
                state_keys=list(self._engine.state_keys),
                applied=self._engine.applied,
                scaler=self._engine.scaler(),
                skipped=rewinds_before(self._rewinds, self._step),
                trainer_state=self._state.model_dump(mode="json"),
                run=self._id,
                config=self._config.model_dump(mode="json"),
            )
        )
        self._saved = self._step

    def _complete_save(self) -> bool:
        """Save what is not saved yet, and wait until it stands, here and on the store. Returns
        whether the store has it all. Raises SaveFailed."""
        self._save()
        self._saver.drain(lambda: self._heartbeat.beat("save", self._step))
        self._saver.require(self._step)
        missing: list[int] = []

        def still() -> None:
            self._uploading(True)

        if self._uploader is not None:
            if self._uploader.busy:
                self._say(f"waits for uploads to {self._config.checkpoint.upload}")
            missing = self._uploader.close(self._config.checkpoint.patience, still)
            for step in missing:
                self._say(
                    f"the checkpoint of step {step} is not on {self._config.checkpoint.upload}: "
                    "see incidents/"
                )
        while self._uploading(False):
            pass
        return not missing

    def _uploading(self, here: bool) -> bool:
        """All ranks together, again and again: whether rank 0 still waits for its copies. So nobody
        is silent, and no exchange is long, however patient it is."""
        self._heartbeat.beat("end", self._step)
        return self._collectives.agree(Flags(waiting=here)).waiting

    def _end_early(self, flags: Flags, failed: ADDPError | None) -> None:
        reasons = self._collectives.all_gather(str(failed) if failed else self._stop.reason())
        reason = next(r for r in reasons if r is not None)
        if self._step:
            self._complete_save()
        if self._collectives.rank == 0:
            self._folder.incident({"event": "stopped", "step": self._step, "reason": reason})
        self._collectives.barrier()
        if failed:
            raise failed
        if flags.failed:
            error = ADDPError(f"another rank ended: {reason}")
            error.exit_code = flags.failed
            raise error
        if self._collectives.rank == 0:
            self._folder.stop.unlink(missing_ok=True)  # else the next start would stop at once
        state = "saved" if self._step else "nothing to save yet"
        raise Preempted(
            f"at step {self._step} of {self._total} ({reason}); {state}. Start it again to go on"
        )

    def _finish(self) -> None:
        copied = self._complete_save()
        done = {"step": self._step, "run": self._id, "start": self._attempt}

        def end() -> None:
            if self._uploader and self._uploader.lost:
                raise self._uploader.lost
            conclude(self._folder, self._config.health, self._state, done)

        self._collectives.broadcast_from_rank0(end)
        if self._uploader and copied:
            self._uploader.announce_end()
        elif self._uploader:
            self._say(
                f"{self._config.checkpoint.upload} does not call the run complete; run it again to "
                "copy the rest"
            )
        if self._collectives.rank == 0:
            self._say(end_line(self._config, self._folder, self._step))
