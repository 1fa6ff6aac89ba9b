"""What comes before the first step: the lock of the run folder, and what a run writes down about itself."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import yaml

from data_pipeline.storage import StorageError
from model.errors import ConfigError
from trainer import records
from trainer.config import RunConfig
from trainer.control import Control
from trainer.costs import Operations
from trainer.objectives import Objective
from trainer.ownership import new_identity
from trainer.precision import MODES
from trainer.restore import Restored
from trainer.run_folder import RunFolder, replace_text, write_json


def prepare(folder: RunFolder, control: Control) -> str:
    """Lock the run folder, and prove that all ranks see it. Returns the name of this start. Raises ConfigError where
    another run holds it or a rank does not see it, StorageError where it cannot be written."""

    def first() -> str:
        try:
            folder.lock()
            folder.exit.unlink(missing_ok=True)
            session = uuid.uuid4().hex[:8]
            replace_text(folder.path / "session", session)
        except OSError as error:
            raise StorageError(
                f"the run folder {folder.path} cannot be written: {error.strerror or error}; make room, or choose "
                "another"
            ) from error
        return session

    session = control.on_first(first)
    try:
        seen = (folder.path / "session").read_text() == session
    except OSError:
        seen = False
    blind = [rank for rank, found in enumerate(control.gather(seen)) if not found]
    if blind:
        raise ConfigError(
            f"ranks {blind} do not see {folder.path} as rank 0 does; put the run folder on storage that all machines "
            "share"
        )
    return session


def make_deterministic() -> None:
    """Only kernels that give the same bits each time, or an error that names the one that does not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # To find errors, PyTorch would also fill new buffers; of DeepSpeed's large ones that takes a second a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def part_name(objective: Objective) -> str:
    """Prefix of the exported network's names in the trained one's."""
    names = [name for name, module in objective.network.named_modules() if module is objective.result]
    return names[0] + "." if names[0] else ""


def run_facts(config: RunConfig, objective: Objective) -> dict[str, Any]:
    """What a checkpoint and the run that loads it must share."""
    return {
        "objective": config.objective,
        "network": objective.result.config.model_dump(mode="json"),
        "geometry": config.geometry.model_dump(mode="json"),
        "data": objective.data_fingerprint,
        "order": objective.order,
        "frozen": objective.frozen,
        "seed": config.seed,
        "global_batch": config.batch.global_batch,
        "optimizer": config.optimizer.name,
    }


def take_up(
    folder: RunFolder, run: str, found: Restored, total: int, world_size: int, say: Callable[[str], None]
) -> None:
    """Rank 0, once it is certain that the run goes on here: say so, name the run in its folder, and take back that it
    is done where it has work left. Raises ConfigError where it is configured to be shorter than it is."""
    if found.step > total:
        raise ConfigError(
            f"the run has come to step {found.step}, and schedule.total gives it {total} steps; set a longer "
            "schedule.total, or use another run folder (and another checkpoint.upload)"
        )
    if folder.read_identity() is None:
        write_json(folder.identity, new_identity(run))
    if found.step < total:
        folder.reopen()
    if found.manifest is None:
        say(f"starts at step 0 of {total} on {world_size} ranks as run {run}")
        return
    age = timedelta(seconds=max(0, round(time.time() - found.manifest.progress.get("seen", 0.0))))
    say(f"resumed at step {found.step} of {total} on {world_size} ranks from {found.source}, saved {age} ago")
    for change in found.changed:
        say(f"changed since that checkpoint: {change}")


def describe_run(folder: RunFolder, config: RunConfig, world_size: int, operations: Operations) -> None:
    """Rank 0: what it computes in, on the console; the rest in the run folder."""
    records.say(f"{config.run.name}: precision {config.precision}: {MODES[config.precision]}")
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    records.replace(folder.path / "config.resolved.yaml", resolved.encode())
    versions = {}
    for name in ("torch", "deepspeed", "numpy", "xformers"):
        module = sys.modules.get(name)
        versions[name] = getattr(module, "__version__", None)
    environment = {
        "command": sys.argv, "host": platform.node(), "python": platform.python_version(), "versions": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "world_size": world_size, "gflop_per_image": {k: v / 1e9 for k, v in operations._asdict().items()},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    records.replace(folder.path / "environment.json", (json.dumps(environment, indent=1) + "\n").encode())
