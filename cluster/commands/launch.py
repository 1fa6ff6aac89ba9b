"""`addp launch`: start a run that heals itself, on one machine or many."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.launching.options import Asked, LaunchOptions, refuse_options_of_others
from cluster.launch.backend import BackendOptions
from cluster.launch.backends import BACKENDS
from cluster.launch.backends.deepspeed import DeepSpeedOptions
from cluster.launch.kubernetes.options import KubernetesOptions
from cluster.launch.slurm.options import SlurmOptions
from cluster.supervise.limits import Limits
from model.errors import ConfigError
from trainer.config.options import AsJson, ConfigFile, RunArguments, from_models

if TYPE_CHECKING:
    from cluster.launch.backend import LaunchPlan
    from cluster.launch.description import Description
    from cluster.launch.outer_loop import Job


@from_models
def launch(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    *,
    backend: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(BACKENDS)}; deepspeed with a hostfile, else local, if not given"
        ),
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="a line `HOST slots=N` for each host, spares last")
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(
            min=0, max=16_383, help="the number of this host, where each host has its own command"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan, start nothing")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            help="write the script or manifests for the scheduler to this file, start nothing"
        ),
    ] = None,
    as_json: AsJson = False,
    options: LaunchOptions,
    limits: Limits,
    deepspeed: DeepSpeedOptions,
    slurm: SlurmOptions,
    kubernetes: KubernetesOptions,
) -> None:
    """Show how a run will be started, start it, and see it through faults to its end.

    Each node gets a supervisor, which starts the ranks there, notices what dies, hangs or is lost,
    and goes on from the newest checkpoint. A stop of this command makes the whole run save.
    """
    from rich.console import Console

    from cluster.commands.launching.prepare import prepare
    from trainer.distributed.world import refuse_tasks

    refuse_tasks("addp launch")
    file, overrides = _configured(config, arguments)
    name = _backend_name(backend, hostfile)
    own: dict[str, BackendOptions] = {
        "deepspeed": deepspeed,
        "slurm": slurm,
        "kubernetes": kubernetes,
    }
    refuse_options_of_others(name, own)
    asked = Asked(name, own.get(name), hostfile, options, limits)
    job, description = prepare(asked, file, overrides, node_rank)
    if as_json:
        print(json.dumps(description.document(), indent=1), flush=True)
    else:
        description.show(Console(), texts=dry_run)
    if write is not None:
        _say(_write(description.plan, write), as_json)
    elif not dry_run:
        _start(job, description, as_json)


def _configured(config: Path | None, arguments: list[str] | None) -> tuple[Path, list[str]]:
    """Return the run file and what the command line changes in it. Raises BadParameter where none
    is named."""
    from trainer.config.arguments import configured
    from trainer.recipes import recipe_names

    file, overrides = configured(config, arguments)
    if file is None:
        raise typer.BadParameter(
            "name a run file, or a recipe: " + ", ".join(recipe_names()), param_hint="FILE"
        )
    return file, overrides


def _backend_name(backend: str | None, hostfile: Path | None) -> str:
    """Return the backend that was named, or the one that the hostfile suggests. Raises
    BadParameter."""
    name = backend or ("local" if hostfile is None else "deepspeed")
    if name not in BACKENDS:
        raise typer.BadParameter(f"there are {', '.join(BACKENDS)}", param_hint="--backend")
    return name


def _start(job: Job, description: Description, as_json: bool) -> None:
    """Start what was planned, and see it through unless a scheduler does.

    as_json: standard output holds the plan as JSON, and nothing else.
    """
    from cluster.launch import outer_loop
    from cluster.launch.files import written
    from cluster.launch.launch import RunFailed
    from cluster.launch.process_group import run_group

    plan, stdout = description.plan, 2 if as_json else None
    if plan.waits:
        if len(plan.commands) > 1 and job.node is None:
            raise ConfigError(
                f"the backend {job.backend} has a command for each host: run the command above on "
                f"each of them, with --node-rank 0 to {len(plan.commands) - 1}"
            )
        outer_loop.see_through(job, stdout=stdout)
        return
    BACKENDS[job.backend].check(job.request(job.hosts))
    with written(plan.files):
        for command in plan.commands:
            if code := run_group(command, stdout).code:
                raise RunFailed(f"`{command.words[0]}` failed with exit code {code}")
    _say("\n".join(plan.afterwards), as_json)


def _say(text: str, as_json: bool) -> None:
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def _write(plan: LaunchPlan, path: Path) -> str:
    """Write what a scheduler is given to a file, and return how it is started.

    Raises BadParameter where there is no scheduler, and ConfigError where the file cannot be
    written.
    """
    if plan.waits:
        raise typer.BadParameter(
            "there is no script for a scheduler in this plan; --dry-run shows it",
            param_hint="--write",
        )
    from cluster.launch.files import written

    (file,), (command,) = plan.files, plan.commands
    with written([replace(file, path=path)]):
        planned = str(file.path.absolute())
        words = [str(path) if word == planned else word for word in command.words]
    return f"{path} is written, and nothing is started; `{shlex.join(words)}` starts it"
