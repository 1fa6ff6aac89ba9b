"""`addp parity`: prove a machine, dtype or backend against the reference; a step, or a whole
training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.commands.modules import become
from cluster.launch.backend import LaunchRequest
from cluster.launch.hosts import this_machine
from cluster.launch.launch import RunFailed, start
from model.errors import ConfigError
from trainer.config.options import processes_option
from trainer.distributed.world import refuse_tasks

_PROGRAM = "addp parity"


def parity(
    folder: Annotated[
        Path | None,
        typer.Argument(help="weights.safetensors, meta.json; io or trajectory.safetensors"),
    ] = None,
    *,
    device: Annotated[
        str, typer.Option(help="cpu, cuda; of a single step also cuda:1, ...")
    ] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "bfloat16-mixed", "float16"],
        typer.Option(help="float64: of a single step only; bfloat16-mixed: of a trajectory only"),
    ] = "float32",
    processes: Annotated[
        int | None, processes_option("trajectory: ranks on this machine (1)")
    ] = None,
    zero_stage: Annotated[
        int | None, typer.Option(min=0, max=3, help="trajectory: of DeepSpeed (1)")
    ] = None,
    own_sums: Annotated[
        bool,
        typer.Option(
            "--own-sums",
            help="trajectory, float32 on the CPU: the loss in the trainer's order of summation",
        ),
    ] = False,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention", help="no FOLDER: try each attention backend on the device, print a table"
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --attention: as JSON")] = False,
) -> None:
    """Reproduce what the reference computed, by the contents of FOLDER.

    io.safetensors: a step's tensors, loss and gradients, and a generation. trajectory.safetensors:
    optimizer steps, by the trainer's own engine under DeepSpeed; the largest deviation of loss,
    gradient norm and each final weight. Prints JSON, and the verdict in one line on standard error;
    exits with 0 if all holds, with 1 if not.
    """
    if attention:
        become("model.parity", ["--attention", "--device", device, *["--json"] * as_json], _PROGRAM)
    if folder is None:
        raise typer.BadParameter("give a folder, or --attention", param_hint="FOLDER")
    arguments = [str(folder), "--device", device, "--dtype", dtype]
    if not (folder / "trajectory.safetensors").is_file():
        if processes or zero_stage is not None or own_sums:
            raise ConfigError(
                f"{folder} has no trajectory.safetensors; --processes, --zero-stage and --own-sums "
                "are for trajectories"
            )
        if dtype == "bfloat16-mixed":
            raise ConfigError(
                f"--dtype {dtype} is for trajectories, and {folder} has no trajectory.safetensors"
            )
        become("model.parity", arguments, _PROGRAM)
    arguments += [
        "--zero-stage",
        str(1 if zero_stage is None else zero_stage),
        *["--own-sums"] * own_sums,
    ]
    if processes is None or processes == 1:
        become("trainer.trajectory", arguments, _PROGRAM)
    refuse_tasks("addp parity --processes")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        arguments += ["--report", str(report)]
        request = LaunchRequest("trainer.trajectory", arguments, this_machine(processes))
        code = start(request, stdout=2).code  # the launcher's own words stay out of the JSON
        if not report.is_file():
            error = RunFailed("the replay ended without a report; the reason stands above")
            error.exit_code = code or RunFailed.exit_code
            raise error
        print(report.read_text(), flush=True)
    raise typer.Exit(code)
