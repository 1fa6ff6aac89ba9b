"""`addp parity`: prove that a machine, a dtype or a backend computes what the reference did."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from cluster.commands.modules import become
from model.errors import ConfigError
from trainer.config.options import processes_option

_PROGRAM = "addp parity"
_TRAJECTORY = "trajectory.safetensors"


def parity(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="holds weights.safetensors, meta.json, and io.safetensors or "
            "trajectory.safetensors"
        ),
    ] = None,
    *,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; for a single step also cuda:1, ...")
    ] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "bfloat16-mixed", "float16"],
        typer.Option(help="float64: for a single step only; bfloat16-mixed: for a trajectory only"),
    ] = "float32",
    processes: Annotated[
        int | None, processes_option("trajectory: ranks on this machine (1 if not given)")
    ] = None,
    zero_stage: Annotated[
        int | None,
        typer.Option(min=0, max=3, help="trajectory: stage of DeepSpeed's ZeRO (1 if not given)"),
    ] = None,
    own_sums: Annotated[
        bool,
        typer.Option(
            "--own-sums",
            help="trajectory, float32 on the CPU: sum the loss in the trainer's own order",
        ),
    ] = False,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="without FOLDER: try each attention backend on the device, and print a table",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --attention: as JSON")] = False,
) -> None:
    """Reproduce what the reference computed, by the contents of FOLDER.

    With io.safetensors, it is a single step: its tensors, loss and gradients, and a generation.
    With trajectory.safetensors, it is a training: optimizer steps by the trainer's own engine under
    DeepSpeed, with the largest deviation of the loss, the gradient norm and each final weight.
    Prints JSON, and the verdict in one line on standard error. Exits with 0 if all holds, with 1 if
    not.
    """
    from trainer.distributed.world import refuse_tasks

    if attention:
        become("model.parity", ["--attention", "--device", device, *["--json"] * as_json], _PROGRAM)
    if folder is None:
        raise typer.BadParameter("give a folder, or --attention", param_hint="FOLDER")
    arguments = [str(folder), "--device", device, "--dtype", dtype]
    if not (folder / _TRAJECTORY).is_file():
        if processes or zero_stage is not None or own_sums:
            raise ConfigError(
                f"{folder} has no {_TRAJECTORY}; --processes, --zero-stage and --own-sums are for "
                "trajectories"
            )
        if dtype == "bfloat16-mixed":
            raise ConfigError(
                f"--dtype {dtype} is for trajectories, and {folder} has no {_TRAJECTORY}"
            )
        become("model.parity", arguments, _PROGRAM)
    stage = 1 if zero_stage is None else zero_stage
    arguments += ["--zero-stage", str(stage), *["--own-sums"] * own_sums]
    if processes is None or processes == 1:
        become("trainer.trajectory", arguments, _PROGRAM)
    refuse_tasks("addp parity --processes")
    _replay(arguments, processes)


def _replay(arguments: list[str], processes: int) -> NoReturn:
    """Replay a trajectory on several ranks, print its report, and exit as the ranks did.

    The report goes through a file: rank 0 and the launcher share one standard output, and what the
    launcher says there would be no JSON.
    """
    from cluster.launch.backend import LaunchRequest
    from cluster.launch.hosts import this_machine
    from cluster.launch.launch import RunFailed, start

    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        words = [*arguments, "--report", str(report)]
        request = LaunchRequest("trainer.trajectory", words, this_machine(processes))
        code = start(request, stdout=2).code
        if not report.is_file():
            error = RunFailed("the replay ended without a report; the reason stands above")
            error.exit_code = code or RunFailed.exit_code
            raise error
        print(report.read_text(), flush=True)
    raise typer.Exit(code)
