"""What comes before the first step: the run folder's lock, proof that all ranks start the same run,
the engine, the checkpoint to go on from, and what the run writes down about itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
import yaml

from data_pipeline.storage import StorageError, open_store
from model.errors import ADDPError, ConfigError
from model.transformer import recompute_blocks
from trainer import costs, records
from trainer.checkpointing.expected import Expected, last_config
from trainer.checkpointing.ownership import Ownership, enter, new_identity
from trainer.checkpointing.restore import Restored, has_checkpoints, restore
from trainer.checkpointing.saver import Saver
from trainer.checkpointing.stop_object import StopObject
from trainer.checkpointing.upload import Uploader
from trainer.compiling import compile_networks
from trainer.config.changes import alike
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.engine.engine import Engine
from trainer.engine.precision import MODES
from trainer.loop import Setup, Trainer
from trainer.metrics import Metrics
from trainer.objectives.base import Objective
from trainer.objectives.counting import Operations
from trainer.objectives.initial_weights import (
    InitialWeights,
    check_initial_weights,
    initial_weights,
)
from trainer.prefetch import Prefetch
from trainer.resilience.heartbeat import Heartbeat
from trainer.resilience.stopping import StopRequest
from trainer.resilience.threads import ThreadWatch
from trainer.run_folder import LOCK_LEASE, RunFolder, replace_text, write_json
from trainer.schedule import total_steps
from trainer.start_times import StartTimes


def prepare(folder: RunFolder, collectives: Collectives) -> str:
    """All ranks together: lock the run folder, and prove that all ranks see it. Returns the name of
    this attempt. Raises ConfigError where another run holds the folder or a rank does not see it,
    StorageError where it cannot be written."""

    def first() -> str:
        try:
            folder.lock(foreign_seconds=LOCK_LEASE)
            folder.exit.unlink(missing_ok=True)
            attempt = uuid.uuid4().hex[:8]
            replace_text(folder.path / "attempt", attempt)
        except OSError as error:
            raise StorageError(
                f"the run folder {folder.path} cannot be written: {error.strerror or error}; make "
                "room, or choose another"
            ) from error
        return attempt

    attempt = collectives.broadcast_from_rank0(first)

    def sees() -> bool:
        try:
            return (folder.path / "attempt").read_text() == attempt
        except OSError:
            return False

    if blind := collectives.until_all(sees):
        raise ConfigError(
            f"ranks {blind} do not see {folder.path} as rank 0 does; put the run folder on storage "
            "that all machines share"
        )
    return attempt


def takes_initial_weights(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run begins with the weights that the configuration names: not where it has a
    checkpoint to go on from.

    Raises WeightsError where they do not fit, by their file's header; StorageError where
    `checkpoint.upload`, which may have a checkpoint, does not answer.
    """
    if initial_weights(config) is None:
        return False
    upload = config.checkpoint.upload
    if has_checkpoints(folder, open_store(upload) if upload else None):
        return False
    check_initial_weights(config)
    return True


def set_up(
    config: RunConfig,
    folder: RunFolder,
    objective: Objective,
    collectives: Collectives,
    *,
    accumulation: int,
    attempt: str,
    heartbeat: Heartbeat,
    stop: StopRequest,
    threads: ThreadWatch,
    times: StartTimes,
    device: torch.device,
    stack: ExitStack,
) -> Trainer:
    """All ranks together: make everything that a run trains with, and restore the checkpoint that
    it goes on from.

    stack: takes what is to be closed. Raises ConfigError where the ranks differ or the folder or
    the store holds another run; what restoring raises.
    """
    if config.deterministic:
        make_deterministic()
    else:
        # cuDNN may try which of its convolutions is fastest, once for each shape.
        torch.backends.cudnn.benchmark = objective.one_shape
    identity, rank = objective.identity(), collectives.rank
    seen_by_all(collectives, objective)
    same_on_all(collectives, config, {**identity, **objective.read_fingerprints()})
    total = total_steps(config.schedule, objective.epochs)
    recompute_blocks(objective.network, config.recompute_every)

    def say(line: str) -> None:
        if rank == 0:
            records.say(f"{config.run.name}: {line}")

    config = compile_networks(objective, config, device, collectives, total=total, say=say)
    heartbeat.beat("setup", 0)
    engine = Engine(
        objective.network,
        config,
        accumulation,
        collectives.world_size,
        groups=objective.parameter_groups(),
    )
    stack.push(_closing_after_agreement(engine))
    times.done("engine")

    heartbeat.beat("restore", 0)
    upload, lease = config.checkpoint.upload, config.checkpoint.lease
    run, owner, store = enter(
        folder,
        open_store(upload) if upload else None,
        lease=lease,
        collectives=collectives,
        heartbeat=heartbeat,
        attempt=attempt,
        say=say,
    )
    uploader, stop_object = (
        _use_store(owner, config, folder, stop, stack) if owner else (None, None)
    )
    saver = Saver(
        folder, engine, collectives, config.checkpoint, attempt=attempt, uploader=uploader
    )
    stack.callback(saver.close)
    before = collectives.broadcast_from_rank0(lambda: last_config(folder))
    expected = Expected(identity, run, config, before)

    def load(latest: int | None) -> Restored:
        restored = restore(
            folder, engine, collectives, expected, store=store, attempt=attempt, latest=latest
        )
        if rank == 0:
            tell_refused(folder, restored, say)
        return restored

    restored = load(None)
    times.done("restore")
    operations = costs.operations_of_run(config, folder) if rank == 0 else Operations(0, 0)
    collectives.broadcast_from_rank0(
        lambda: take_up(
            folder,
            restored,
            run=run,
            total=total,
            world_size=collectives.world_size,
            say=say,
            given=objective.initial_weights,
        )
    )
    if rank == 0:
        describe_run(folder, config, collectives.world_size, operations, total)
    if uploader:
        _bring_up_to_date(uploader, restored.step, total)
    metrics = Metrics(folder, config, restored.step, total) if rank == 0 else None
    if metrics:
        stack.enter_context(metrics)
    prefetch = Prefetch(objective, collectives.rank, accumulation, config.batch.micro)
    stack.callback(prefetch.close)
    setup = Setup(
        config=config,
        folder=folder,
        run=run,
        attempt=attempt,
        identity=identity,
        total=total,
        objective=objective,
        operations=operations,
        device=device,
        collectives=collectives,
        engine=engine,
        prefetch=prefetch,
        restore=load,
        has_checkpoint=lambda latest: has_checkpoints(folder, store, latest),
        saver=saver,
        uploader=uploader,
        stop_object=stop_object,
        metrics=metrics,
        heartbeat=heartbeat,
        stop=stop,
        threads=threads,
        times=times,
    )
    times.done("records")
    return Trainer(setup, restored)


def _use_store(
    owner: Ownership, config: RunConfig, folder: RunFolder, stop: StopRequest, stack: ExitStack
) -> tuple[Uploader, StopObject]:
    """Rank 0, which holds the store: make what copies checkpoints to it, and what looks there for a
    request to stop. The store is let go last."""
    stack.callback(owner.release)
    uploader = Uploader(folder, config.checkpoint, owner.confirm)
    stop_object = StopObject(owner.store, stop)
    stack.callback(stop_object.close)
    return uploader, stop_object


def _bring_up_to_date(uploader: Uploader, step: int, total: int) -> None:
    """Have the store show that the run goes on at a step of so many."""
    if step < total:
        uploader.withdraw_end()
    if step:  # the last start may not have brought it; no copy is sent twice
        uploader.offer(step)


def _closing_after_agreement(
    engine: Engine,
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Close the engine at the end, which all ranks do together. Not after a crash, when other ranks
    may be in the middle of an exchange."""

    def close(
        kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or isinstance(value, ADDPError):
            engine.close()

    return close


def make_deterministic() -> None:
    """Allow only kernels that give the same bits each time. PyTorch raises an error that names any
    other kernel."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # To find errors, PyTorch would also fill new buffers; of DeepSpeed's large ones that takes a
    # second a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seen_by_all(collectives: Collectives, objective: Objective) -> None:
    """All ranks together: look whether each can read what rank 0 has listed for them. Raises
    ConfigError that names the first rank that cannot."""
    for rank, reason in enumerate(collectives.all_gather(objective.unseen())):
        if reason is not None:
            raise ConfigError(
                f"rank {rank} cannot read the data that rank 0 has listed: {reason}; look whether "
                "their hosts see the same storage, and start again"
            )


def same_on_all(collectives: Collectives, config: RunConfig, identity: dict[str, Any]) -> None:
    """All ranks together: compare the configuration, except for where things lie, and what was
    read. Each rank reads files by itself, and what hosts see of shared storage may differ. Raises
    ConfigError that names the rank that differs from rank 0, and in what."""
    digests = {
        key: hashlib.sha256(json.dumps(value).encode()).hexdigest()
        for key, value in identity.items()
    }
    (keys, read), *others = collectives.all_gather((alike(config), digests))
    for rank, (other_keys, other_read) in enumerate(others, 1):
        if different := _different(keys, other_keys):
            raise ConfigError(
                f"rank {rank} has another configuration than rank 0: {', '.join(different)} "
                "differ; look whether their hosts have the same run file, command line and "
                "program, and start again"
            )
        if different := _different(read, other_read):
            raise ConfigError(
                f"rank {rank} sees other files than rank 0: {', '.join(different)} differ; look "
                "whether their hosts see the same storage, and whether its files are being "
                "changed, and start again"
            )


def _different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def tell_refused(folder: RunFolder, restored: Restored, say: Callable[[str], None]) -> None:
    """Rank 0: say which checkpoints were refused, and why, and write that down."""
    for reason in restored.refused:
        say(f"refused a checkpoint: {reason}")
        folder.incident({"event": "checkpoint refused", "reason": reason})


def take_up(
    folder: RunFolder,
    restored: Restored,
    *,
    run: str,
    total: int,
    world_size: int,
    say: Callable[[str], None],
    given: InitialWeights | None = None,
) -> None:
    """Rank 0, once it is certain that the run goes on here: say so, name the run in its folder, and
    take back that it is done where it has work left. given: the weights that it begins with.

    Raises ConfigError where the run has come further than its configured length, StorageError where
    the checkpoint is gone for which the weights were not read.
    """
    if restored.step > total:
        raise ConfigError(
            f"the run has come to step {restored.step}, and schedule.total gives it {total} steps; "
            "set a longer schedule.total, or use another run folder (and another checkpoint.upload)"
        )
    unread = given is not None and given.fingerprint is None
    if restored.manifest is None and unread:
        raise StorageError(
            "the checkpoint that was there when this start began is gone; start the run again"
        )
    if folder.read_identity() is None:
        write_json(folder.identity, new_identity(run))
    if restored.step < total:
        folder.reopen()
    if restored.manifest is None:
        begun = f", from {given}, fingerprint {given.fingerprint}" if given else ""
        say(f"starts at step 0 of {total} on {world_size} ranks as run {run}{begun}")
        return
    saved = restored.manifest.saved
    age = f", saved {records.ago(saved)}" if saved else ""
    say(
        f"resumed at step {restored.step} of {total} on {world_size} ranks from "
        f"{restored.source}{age}"
    )
    if unread:
        say(f"{given} is not read: the run goes on from its own checkpoint")
    for change in restored.changed:
        say(f"changed since that checkpoint: {change}")


def describe_run(
    folder: RunFolder, config: RunConfig, world_size: int, operations: Operations, total: int
) -> None:
    """Rank 0: say what the run computes in, and write its resolved configuration and its
    environment into the run folder. total: the steps of the whole run."""
    records.say(f"{config.run.name}: precision {config.precision}: {MODES[config.precision]}")
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    records.replace(folder.path / "config.resolved.yaml", resolved.encode())
    versions = {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in ("torch", "deepspeed", "numpy", "xformers")
    }
    on_gpu = torch.cuda.is_available()
    environment = {
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "world_size": world_size,
        "total_steps": total,
        "gflop_per_image": {k: v / 1e9 for k, v in operations._asdict().items()},
        "threads": torch.get_num_threads(),
    }
    records.replace(
        folder.path / "environment.json", (json.dumps(environment, indent=1) + "\n").encode()
    )
