"""Checkpoints that are valid or invisible.

All ranks write into step-N.tmp; rank 0 gathers sizes and hashes of every file, writes `manifest.json` last, syncs and
renames. A folder step-N with a manifest whose hashes match is a checkpoint; nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from data_pipeline.storage import sync
from model.errors import ADDPError, ConfigError
from model.weights import Network, save_network
from trainer.engine import Engine
from trainer.run_folder import EXIT_NO_VALID_CHECKPOINT, RunFolder, write_json

MANIFEST = "manifest.json"


class NoValidCheckpoint(ADDPError):
    """There are checkpoints, but none can be loaded. Never a silent start from zero."""

    exit_code = EXIT_NO_VALID_CHECKPOINT


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rank_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Dropout's generator: the only randomness that belongs to a rank."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def save(folder: RunFolder, engine: Engine, network: Network, step: int, facts: dict[str, Any], keep: int) -> None:
    """All ranks together. facts: what must agree when the run goes on (see `check_facts`), stored in the manifest."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    target = folder.checkpoints / f"step-{step:08d}"
    staging = target.with_name(target.name + ".tmp")
    if rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    dist.barrier()
    engine.save(staging)
    save_file(_rank_state(engine.device), staging / f"rng-{rank:05d}.safetensors")
    if rank == 0:
        save_network(network, staging / "network.safetensors")
    dist.barrier()
    if rank == 0:
        files = {}
        for path in sorted(p for p in staging.rglob("*") if p.is_file()):
            sync(path)
            files[path.relative_to(staging).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        write_json(
            staging / MANIFEST,
            {"format": "addp-checkpoint-1", "step": step, "world_size": world_size, **facts, "files": files},
        )
        shutil.rmtree(target, ignore_errors=True)  # an older, damaged one that this run went round
        staging.rename(target)
        sync(folder.checkpoints)
        for old in candidates(folder)[keep:]:
            (old / MANIFEST).unlink(missing_ok=True)  # first: what is half removed is no checkpoint
            shutil.rmtree(old)
    dist.barrier()


def candidates(folder: RunFolder) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.checkpoints.glob("step-????????"), reverse=True)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, all of whose files have the sizes and hashes it states. Raises ADDPError if not."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ADDPError(f"{path.name} has no readable {MANIFEST}: {error}") from error
    for name, stated in files.items():
        file = path / name
        if not file.is_file():
            raise ADDPError(f"{path.name}: {name} is missing")
        if file.stat().st_size != stated["bytes"] or _sha256(file) != stated["sha256"]:
            raise ADDPError(f"{path.name}: {name} is damaged")
    return manifest


def newest_valid(folder: RunFolder) -> tuple[Path, dict[str, Any], list[str]] | None:
    """(path, manifest, reasons why newer ones were refused); None for a run without checkpoints.

    Raises NoValidCheckpoint where there are candidates but none is valid.
    """
    refused: list[str] = []
    for path in candidates(folder):
        try:
            return path, verify(path), refused
        except ADDPError as error:
            refused.append(str(error))
    if refused:
        raise NoValidCheckpoint(
            f"{folder.checkpoints} has {len(refused)} checkpoints, but none is valid: {'; '.join(refused)}. "
            "Restore one from a copy, or move the folder away to start from the beginning"
        )
    return None


def check_facts(manifest: dict[str, Any], facts: dict[str, Any], world_size: int, path: Path) -> None:
    """Refuse a checkpoint of another model, data set or world size. Raises ConfigError that names the difference."""
    different = [
        f"{key}: checkpoint {manifest.get(key)!r}, now {value!r}"
        for key, value in facts.items()
        if manifest.get(key) != value
    ]
    if different:
        raise ConfigError(
            f"{path} belongs to another run than the configured one ({'; '.join(different)}); "
            "use that configuration, or another run folder"
        )
    if manifest["world_size"] != world_size:
        raise ConfigError(
            f"{path} was written by {manifest['world_size']} ranks, but {world_size} are running; start as many"
        )


def restore(folder: RunFolder, engine: Engine, facts: dict[str, Any]) -> tuple[int, list[str]]:
    """Load the newest valid checkpoint on all ranks. Returns (step to do next, reasons for those refused).

    Rank 0 verifies and tells the others, so that all load the same one.
    """
    message: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = newest_valid(folder)
            if found is not None:
                check_facts(found[1], facts, dist.get_world_size(), found[0])
            message = [found]
        except ADDPError as error:
            message = [error]
    dist.broadcast_object_list(message, 0)
    if isinstance(message[0], ADDPError):
        raise message[0]
    if message[0] is None:
        return 0, []
    path, manifest, refused = message[0]
    engine.load(path)
    state = load_file(path / f"rng-{dist.get_rank():05d}.safetensors")
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], engine.device)
    return int(manifest["step"]), refused
