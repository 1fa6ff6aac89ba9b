"""What comes before the first step: the lock of the run folder, and what a run writes down about
itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import uuid
from collections.abc import Callable
from typing import Any

import torch
import yaml

from data_pipeline.storage import StorageError, open_store
from model.errors import ConfigError
from trainer import records
from trainer.checkpointing.ownership import new_identity
from trainer.checkpointing.restore import Restored, has_checkpoints
from trainer.config.changes import alike
from trainer.config.schema import RunConfig
from trainer.distributed.collectives import Collectives
from trainer.engine.precision import MODES
from trainer.objectives.counting import Operations
from trainer.objectives.initial_weights import (
    InitialWeights,
    check_initial_weights,
    initial_weights,
)
from trainer.run_folder import RunFolder, replace_text, write_json


def prepare(folder: RunFolder, collectives: Collectives) -> str:
    """Lock the run folder, and prove that all ranks see it. Returns the name of this start. Raises
    ConfigError where another run holds it or a rank does not see it, StorageError where it cannot
    be written."""

    def first() -> str:
        try:
            folder.lock()
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


def make_deterministic() -> None:
    """Only kernels that give the same bits each time, or an error that names the one that does
    not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # To find errors, PyTorch would also fill new buffers; of DeepSpeed's large ones that takes a
    # second a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def takes_initial_weights(config: RunConfig, folder: RunFolder) -> bool:
    """Whether the run begins with the weights that it was given: not where it has a checkpoint to
    go on from.

    Raises WeightsError where they do not fit, by their file's header; StorageError where
    `checkpoint.upload`, which may have a checkpoint, does not answer.
    """
    upload = config.checkpoint.upload
    if initial_weights(config) is None or has_checkpoints(
        folder, open_store(upload) if upload else None
    ):
        return False
    check_initial_weights(config)
    return True


def same_on_all(collectives: Collectives, config: RunConfig, run_identity: dict[str, Any]) -> None:
    """All ranks together. Raises ConfigError where one has another configuration than rank 0, but
    for places, or read other data or weights: each reads and lists them by itself, and what hosts
    see of shared storage may differ."""
    mine = (
        alike(config),
        {
            key: hashlib.sha256(json.dumps(value).encode()).hexdigest()
            for key, value in run_identity.items()
        },
    )
    (keys, read), *others = collectives.all_gather(mine)
    for rank, (other_keys, other_read) in enumerate(others, 1):
        if different := [
            key for key in {**keys, **other_keys} if other_keys.get(key) != keys.get(key)
        ]:
            raise ConfigError(
                f"rank {rank} has another configuration than rank 0: {', '.join(different)} "
                "differ; look whether their hosts have the same run file, command line and "
                "program, and start again"
            )
        if different := [
            key for key in {**read, **other_read} if other_read.get(key) != read.get(key)
        ]:
            raise ConfigError(
                f"rank {rank} sees other files than rank 0: {', '.join(different)} differ; look "
                "whether their hosts see the same storage, and whether its files are being "
                "changed, and start again"
            )


def take_up(
    folder: RunFolder,
    run: str,
    found: Restored,
    total: int,
    world_size: int,
    say: Callable[[str], None],
    first: InitialWeights | None = None,
) -> None:
    """Rank 0, once it is certain that the run goes on here: say so, name the run in its folder, and
    take back that it is done where it has work left. first: the weights that it was given.

    Raises ConfigError where it is configured to be shorter than it is, StorageError where the
    checkpoint is gone for which those weights were not read.
    """
    if found.step > total:
        raise ConfigError(
            f"the run has come to step {found.step}, and schedule.total gives it {total} steps; "
            "set a longer schedule.total, or use another run folder (and another checkpoint.upload)"
        )
    unread = first is not None and first.fingerprint is None
    if found.manifest is None and unread:
        raise StorageError(
            "the checkpoint that was there when this start began is gone; start the run again"
        )
    if folder.read_identity() is None:
        write_json(folder.identity, new_identity(run))
    if found.step < total:
        folder.reopen()
    if found.manifest is None:
        begun = f", from {first}, fingerprint {first.fingerprint}" if first else ""
        say(f"starts at step 0 of {total} on {world_size} ranks as run {run}{begun}")
        return
    saved = f", saved {records.ago(found.manifest.saved)}" if found.manifest.saved else ""
    say(f"resumed at step {found.step} of {total} on {world_size} ranks from {found.source}{saved}")
    if unread:
        say(f"{first} is not read: the run goes on from its own checkpoint")
    for change in found.changed:
        say(f"changed since that checkpoint: {change}")


def describe_run(
    folder: RunFolder, config: RunConfig, world_size: int, operations: Operations
) -> None:
    """Rank 0: what it computes in, on the console; the rest in the run folder."""
    records.say(f"{config.run.name}: precision {config.precision}: {MODES[config.precision]}")
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    records.replace(folder.path / "config.resolved.yaml", resolved.encode())
    versions = {}
    for name in ("torch", "deepspeed", "numpy", "xformers"):
        module = sys.modules.get(name)
        versions[name] = getattr(module, "__version__", None)
    environment = {
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": versions,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "world_size": world_size,
        "gflop_per_image": {k: v / 1e9 for k, v in operations._asdict().items()},
        "threads": torch.get_num_threads(),
    }
    records.replace(
        folder.path / "environment.json", (json.dumps(environment, indent=1) + "\n").encode()
    )
