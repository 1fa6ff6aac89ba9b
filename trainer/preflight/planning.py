"""What a run will take, before it is started.

addp plan base --gpus 32 --gpus 64
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from data_pipeline.storage import StorageError
from data_pipeline.streaming.epochs import epoch_schedule
from model.documents import Settings, show
from model.errors import ConfigError, DataError
from trainer import costs
from trainer.config.arguments import configured
from trainer.config.options import AsJson, ConfigFile, RunArguments, from_models, gpus_option
from trainer.config.reading import load_config
from trainer.config.schema import MOST_STEPS, YEAR, RunConfig
from trainer.engine.precision import MODES
from trainer.objectives.initial_weights import check_initial_weights, initial_weights
from trainer.preflight import reliability
from trainer.schedule import accumulation_steps, possible_world_sizes, total_steps

_IMAGENET = 1_281_167
_FEW = 8  # GPUs of a machine
_GIB = 2**30
# What training waits for at a save, however small it is: ranks that agree, files that are made.
_LEAST_STALL = 0.5  # seconds
_COPY_RATE = 10e9  # bytes a second from a device to host memory


class Assumptions(Settings):
    """What a plan takes for granted, as nothing here can measure it."""

    images: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="images of an epoch, where the data set is not here. Not given: the data "
        f"set's, or {_IMAGENET:,}",
    )
    device: str = Field(
        "H100", description=f"your GPU: {', '.join(costs.PEAKS)}, or its TFLOP/s in dense bf16"
    )
    mfu: float = Field(
        0.4, ge=0.01, le=1, description="share of the device's peak that training reaches"
    )
    write: float = Field(
        1.0, ge=0.001, le=1e6, description="GB/s at which one rank writes its part of a checkpoint"
    )
    grace: float = Field(
        30.0,
        ge=0,
        le=YEAR,
        description="seconds that a preempted job has between the signal and the kill",
    )

    mttf: float = Field(
        round(reliability.MEAN_GPU_HOURS),
        ge=1e-3,
        le=1e12,
        description="GPU hours to a failure, on average; as published, 7.9 h at 1,024 GPUs",
    )
    detect: float = Field(
        30.0, ge=0, le=YEAR, description="seconds until a failure is noticed, on average"
    )
    restart: float = Field(
        120.0,
        ge=0,
        le=YEAR,
        description="seconds from then to the next new step: start, restore, first step",
    )
    stall: float | None = Field(
        None,
        ge=0,
        le=YEAR,
        description="seconds for which training waits at each checkpoint. Not given: "
        f"{_LEAST_STALL} s, and the copy of a rank's part to host memory at {_COPY_RATE / 1e9:.0f} "
        "GB/s, or its writing if saves are not asynchronous",
    )

    @property
    def peak(self) -> float:
        """Operations a second of the device. Raises ConfigError for a device that is not known."""
        try:
            peak = costs.PEAKS.get(self.device) or float(self.device) * 1e12
        except ValueError:
            peak = math.nan
        if not 0 < peak <= 1e18:
            known = ", ".join(costs.PEAKS)
            raise ConfigError(f"--device {show(self.device)}: {known}, or a number of TFLOP/s")
        return peak


@from_models
def main(
    *,
    arguments: RunArguments = None,
    config: ConfigFile = None,
    gpus: Annotated[
        list[int] | None,
        gpus_option("GPUs of the run, 8 or what fits the batch if not given; repeat it to compare"),
    ] = None,
    assumptions: Assumptions,
    as_json: AsJson = False,
) -> None:
    """Say what a run will take: batch arithmetic, parameters, memory in each ZeRO stage, days,
    checkpoints, and the time that failures cost. Without a run file, it plans a run with the
    defaults.

    Memory counts the training's own tensors when there are most of them; the libraries' workspaces
    come on top. Days assume the share of the GPU's peak that --mfu states. ETTR is the share of the
    time in steps that count, where GPUs fail as --mttf says, at random; `checkpoint.every` is
    proposed for most of it.
    """
    file, overrides = configured(config, arguments)
    plan = make_plan(file, overrides, gpus or [], assumptions)
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        _show(plan)


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
        check_initial_weights(config)
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
    stall = _LEAST_STALL + (share / _COPY_RATE if asynchronous else write)
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
        return images or _IMAGENET
    from data_pipeline.shards.manifest import read_manifest

    try:
        return read_manifest(tokens).rows
    except DataError as error:
        raise DataError(f"{error}; or state its images by --images") from error
    except StorageError as error:
        raise StorageError(f"{error}; or state its images by --images") from error


def _show(plan: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    g, sizes = plan["gflop_per_image"], plan["possible_gpus"]
    shown = ", ".join(map(str, sizes if len(sizes) <= 16 else [*sizes[:8], "...", *sizes[-7:]]))
    for name, value in (
        (
            "objective",
            f"{plan['objective']}, {plan['precision']}, learning rate {plan['learning_rate']:.3g}",
        ),
        (
            "batch",
            f"{plan['global_batch']} = micro {plan['micro']} x accumulation x GPUs; GPUs: {shown}",
        ),
        (
            "steps",
            f"{plan['steps']:,} ({plan['steps_per_epoch']:,} an epoch of "
            f"{plan['images_per_epoch']:,} images)",
        ),
        (
            "parameters",
            f"{plan['trained_parameters'] / 1e6:.1f} M trained, "
            f"{plan['frozen_parameters'] / 1e6:.1f} M frozen",
        ),
        ("operations", f"{g['trained']:.1f} GFLOP an image trained, {g['frozen']:.1f} frozen"),
        *([("begins with", plan["begins_with"])] if plan["begins_with"] else []),
        ("checkpoint", f"{plan['checkpoint_gib']:.2f} GiB, {plan['checkpoints_gib']:.2f} GiB kept"),
    ):
        console.print(f"[bold]{name:11s}[/] {value}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "GPUs",
        "accumulation",
        "days",
        "save",
        *(f"ZeRO-{s}" for s in plan["worlds"][0]["memory_gib"]),
    ):
        table.add_column(column, justify="right")
    for world in plan["worlds"]:
        save = f"{world['save_seconds']:.1f} s" + (
            "" if world["saves_within_grace"] else f" > {plan['grace']:.0f} s!"
        )
        memory = [f"{stage['total']:.1f} GiB" for stage in world["memory_gib"].values()]
        table.add_row(
            str(world["gpus"]), str(world["accumulation"]), f"{world['days']:.1f}", save, *memory
        )
    console.print()
    console.print(table)
    console.print(
        f"days: at {plan['mfu']:.0%} of {plan['tflops']:.0f} TFLOP/s ({plan['device']}). Memory of "
        "a GPU: weights, gradients, optimizer, frozen networks, ZeRO's buckets, and the tensors of "
        "a micro batch when there are most (offload and libraries' workspaces not counted). save: "
        "of one rank's share."
    )
    _show_failures(plan, console)


def _show_failures(plan: dict[str, Any], console: Console) -> None:
    """Print what failures cost, on each number of GPUs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    every = plan["checkpoint_every"]
    for column in (
        "GPUs",
        "failure every",
        "checkpoint.every",
        "ETTR",
        f"with {every}",
        "saves",
        "redone",
        "down",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for world in plan["worlds"]:
        found = world["reliability"]
        table.add_row(
            str(world["gpus"]),
            _hours(found["hours_to_failure"]),
            f"{found['every']:,} ({_hours(found['every'] * found['step_seconds'] / 3600)})",
            f"{found['ettr']:.2%}",
            f"{found['ettr_as_configured']:.2%}",
            *(f"{share:.2%}" for share in found["waste"].values()),
        )
    console.print()
    console.print(table)
    console.print(
        f"ETTR: the share of the time in steps that count, at {plan['mttf_gpu_hours']:,.0f} GPU "
        f"hours to a failure, {plan['detect_seconds']:g} s to notice it and "
        f"{plan['restart_seconds']:g} s to the next new step; with the proposed checkpoint.every, "
        f"and with the configured {every}. It is lost to waiting for saves, to work that is redone "
        "after a failure, and while the run is down."
    )


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
