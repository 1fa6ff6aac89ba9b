"""What a run takes on so many GPUs: memory, days, checkpoints, and what failures cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_pipeline.storage import StorageError
from data_pipeline.streaming.epochs import epoch_schedule
from model.errors import DataError
from trainer import costs
from trainer.config.bounds import MOST_STEPS
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.engine.precision import MODES
from trainer.objectives.initial_weights import check_initial_weights, initial_weights
from trainer.preflight import reliability
from trainer.preflight.assumptions import COPY_RATE, IMAGENET, LEAST_STALL, Assumptions
from trainer.schedule import accumulation_steps, possible_world_sizes, total_steps

_FEW = 8  # GPUs of a machine
_GIB = 2**30


def make_plan(
    file: Path | None, overrides: list[str], gpus: list[int], assumptions: Assumptions
) -> dict[str, Any]:
    """Return what the run of a run file and overrides takes, on each of the numbers of GPUs.

    gpus: [] stands for what fits the batch, at most 8. Raises ConfigError, and WeightsError where
    the weights that the run begins with are here and do not fit.
    """
    config, peak = load_config(file, overrides), assumptions.peak
    first = initial_weights(config)
    if first is not None and first.path.is_file():
        first = first._replace(resized=check_initial_weights(config))
    gpus = gpus or [max((n for n in possible_world_sizes(config) if n <= _FEW), default=_FEW)]
    accumulation = {world: accumulation_steps(config, world) for world in gpus}
    epochs = epoch_schedule(
        _samples(config.data.tokens, assumptions.images),
        config.batch.global_batch,
        config.data.tail,
    )
    steps = total_steps(config.schedule, epochs)
    trained, frozen = costs.parameters(config)
    operations = costs.image_operations(config)
    size = costs.checkpoint_bytes(config)
    worlds = [
        {
            "gpus": world,
            "accumulation": accumulation[world],
            **_time_and_memory(config, assumptions, world, steps, operations.total),
        }
        for world in gpus
    ]
    return {
        "objective": config.objective,
        "learning_rate": config.learning_rate,
        "precision": config.precision,
        "global_batch": config.batch.global_batch,
        "micro": config.batch.micro,
        "steps": steps,
        "steps_per_epoch": epochs.steps_per_epoch,
        "images_per_epoch": epochs.samples,
        "possible_gpus": possible_world_sizes(config),
        "trained_parameters": trained,
        "frozen_parameters": frozen,
        "gflop_per_image": {"trained": operations.trained / 1e9, "frozen": operations.frozen / 1e9},
        "begins_with": str(first) if first else None,
        "device": assumptions.device,
        "tflops": peak / 1e12,
        "mfu": assumptions.mfu,
        "checkpoint_gib": size / _GIB,
        "checkpoints_gib": size / _GIB * config.checkpoint.keep,
        "grace": assumptions.grace,
        "mttf_gpu_hours": assumptions.mttf,
        "detect_seconds": assumptions.detect,
        "restart_seconds": assumptions.restart,
        "checkpoint_every": config.checkpoint.every,
        "worlds": worlds,
    }


def _time_and_memory(
    config: RunConfig, assumptions: Assumptions, gpus: int, steps: int, operations: float
) -> dict[str, Any]:
    """Return what the run takes on so many GPUs. operations: of one image."""
    rate = assumptions.peak * assumptions.mfu * gpus
    step_seconds = config.batch.global_batch * operations / rate
    share = costs.checkpoint_bytes(config) / gpus
    save = share / (assumptions.write * 1e9)
    return {
        "days": steps * step_seconds / 86400,
        "memory_gib": _memory(config, gpus),
        "save_seconds": save,
        "saves_within_grace": save < assumptions.grace,
        "reliability": _reliability(
            config, assumptions, gpus=gpus, step_seconds=step_seconds, share=share, steps=steps
        ),
    }


def _reliability(
    config: RunConfig,
    assumptions: Assumptions,
    *,
    gpus: int,
    step_seconds: float,
    share: float,
    steps: int,
) -> dict[str, Any]:
    """Return how often a run on so many GPUs fails, what that costs, and which `checkpoint.every`
    costs least.

    share: bytes of a checkpoint that one rank writes. A checkpoint is never proposed more often
    than its files can be written.
    """
    write = share / (assumptions.write * 1e9)
    asynchronous = config.checkpoint.asynchronous
    stall = LEAST_STALL + (share / COPY_RATE if asynchronous else write)
    failures = reliability.Failures(
        failure=reliability.mean_time_to_failure(assumptions.mttf, gpus),
        stall=stall if assumptions.stall is None else assumptions.stall,
        commit=write if asynchronous else 0.0,
        down=assumptions.detect + assumptions.restart,
    )
    interval = max(reliability.best_interval(failures), failures.commit)
    every = _round_number(min(max(1.0, interval / step_seconds), steps, MOST_STEPS))
    lost = reliability.waste(every * step_seconds, failures)
    return {
        "hours_to_failure": failures.failure / 3600,
        "failures": steps * step_seconds / failures.failure,
        "step_seconds": step_seconds,
        "stall_seconds": failures.stall,
        "commit_seconds": failures.commit,
        "best_interval_seconds": interval,
        "every": every,
        "ettr": reliability.training_ratio(every * step_seconds, failures),
        "ettr_as_configured": reliability.training_ratio(
            config.checkpoint.every * step_seconds, failures
        ),
        "waste": lost._asdict(),
    }


def _round_number(steps: float) -> int:
    """Return a number of steps with two digits that count."""
    size = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return max(1, round(steps / size) * size)


def _memory(config: RunConfig, world: int) -> dict[str, dict[str, float]]:
    """Return the GiB that a rank needs, by use, in each ZeRO stage that the precision permits.

    world: the number of ranks.
    """
    memory = {}
    for stage in range(MODES[config.precision].least_stage, 4):
        needed = costs.rank_memory(config, stage, world)
        parts = {name: value / _GIB for name, value in needed._asdict().items()}
        memory[str(stage)] = {**parts, "total": needed.total / _GIB}
    return memory


def _samples(tokens: str | None, images: int | None) -> int:
    """Return the number of images of an epoch: as stated, else the rows of the data set.

    Raises DataError or StorageError where the data set cannot be read.
    """
    if images is not None or tokens is None:
        return images or IMAGENET
    from data_pipeline.shards.manifest import read_manifest

    try:
        return read_manifest(tokens).rows
    except DataError as error:
        raise DataError(f"{error}; or state its images by --images") from error
    except StorageError as error:
        raise StorageError(f"{error}; or state its images by --images") from error
