"""What a run will take, before it is started.

addp plan base --gpus 32 --gpus 64
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from trainer.config.options import AsJson, ConfigFile, RunArguments, from_models, gpus_option
from trainer.preflight.assumptions import Assumptions

if TYPE_CHECKING:
    from rich.console import Console


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
    from trainer.config.arguments import configured
    from trainer.preflight.estimates import make_plan

    file, overrides = configured(config, arguments)
    plan = make_plan(file, overrides, gpus or [], assumptions)
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        _show(plan)


def _show(plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

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
    from rich.table import Table

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
