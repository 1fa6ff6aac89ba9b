"""`addp launch`: start a run that heals itself, on one machine or many."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from rich.console import Console

from cluster.launch import outer_loop
from cluster.launch.backend import BackendOptions, LaunchPlan, LaunchRequest
from cluster.launch.backends import BACKENDS
from cluster.launch.backends.deepspeed import DeepSpeedOptions
from cluster.launch.backends.slurm import SlurmOptions
from cluster.launch.description import Batch, Description
from cluster.launch.files import written
from cluster.launch.hosts import Hosts, checked_address, choose_hosts, this_machine, unnamed
from cluster.launch.kubernetes.options import KubernetesOptions
from cluster.launch.launch import RunFailed
from cluster.launch.process_group import run_group
from cluster.launch.supervised import MODULE, Supervision, usual_port
from cluster.launch.timeouts import NOTICE_MARGIN, Timeouts
from cluster.launch.variables import has_login, split_secrets
from cluster.supervise.limits import Limits
from cluster.supervise.policy import Rules
from model.documents import Settings
from model.errors import ConfigError
from trainer.config.arguments import configured
from trainer.config.options import AsJson, ConfigFile, RunArguments, from_models
from trainer.config.schema import RunConfig
from trainer.distributed.environment import needed_names

_WRITE = (
    1e9  # bytes a second at which a rank writes its part of a checkpoint, as `addp plan` has it
)


class LaunchOptions(Settings):
    """The options of a launch that are the same for all backends."""

    nodes: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="nodes that train; the hosts of the hostfile if not given",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=256,
        description="ranks on each node; the hostfile's slots if not given, or 1",
    )
    min_nodes: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="go on with as few nodes as this where others are lost (all)",
    )
    spares: int = Field(
        0, ge=0, le=1024, description="nodes beyond --nodes, which wait until one is needed"
    )
    max_restarts: int = Field(
        3, ge=1, le=1000, description="give up after so many failures without progress"
    )
    rejoin: float | None = Field(
        None,
        ge=0,
        le=604_800,
        description="seconds for which supervisors wait for missing nodes (120); where this "
        "command starts them over ssh, they end soon (5), and it starts them again",
    )
    grow: float = Field(
        600, ge=0, le=604_800, description="seconds that fewer nodes train before more may join"
    )
    grace: float = Field(
        60, ge=1, le=86_400, description="seconds for the save when the run is asked to stop"
    )
    port: int | None = Field(
        None,
        ge=1024,
        le=65_534,
        description="of the coordinator on the first node, and of the launcher the one after it; "
        "from the run's name if not given",
    )
    master_addr: str | None = Field(
        None, description="the first node's address, if its name is not what others reach it by"
    )
    devices: str | None = Field(
        None,
        description="the devices of each node for its ranks, as 0,2; the first ones if not given",
    )


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
    from trainer.distributed.world import refuse_tasks
    from trainer.recipes import recipe_names

    refuse_tasks("addp launch")
    file, overrides = configured(config, arguments)
    if file is None:
        raise typer.BadParameter(
            "name a run file, or a recipe: " + ", ".join(recipe_names()), param_hint="FILE"
        )
    name = backend or ("local" if hostfile is None else "deepspeed")
    if name not in BACKENDS:
        raise typer.BadParameter(f"there are {', '.join(BACKENDS)}", param_hint="--backend")
    own: dict[str, BackendOptions] = {
        "deepspeed": deepspeed,
        "slurm": slurm,
        "kubernetes": kubernetes,
    }
    asked = _Asked(name, own.get(name), hostfile, options, limits)
    job, description = _prepare(asked, file, overrides, node_rank)
    if as_json:
        print(json.dumps(description.document(), indent=1), flush=True)
    else:
        description.show(Console(), texts=dry_run)
    if write is not None:
        _write(description.plan, write)
    elif not dry_run:
        _start(job, description, stdout=2 if as_json else None)


@dataclass(frozen=True)
class _Asked:
    """What the command line says of the launch itself. own: the backend's own options."""

    backend: str
    own: BackendOptions | None
    hostfile: Path | None
    options: LaunchOptions
    limits: Limits

    @property
    def reaches_hosts(self) -> bool:
        """Whether the backend brings processes and variables to other hosts, over ssh."""
        return isinstance(self.own, DeepSpeedOptions) and not self.own.no_ssh

    @property
    def has_no_scheduler(self) -> bool:
        """Whether the hosts are known here, and not only to a scheduler."""
        return self.backend in ("local", "deepspeed", "torchrun")


def _prepare(
    asked: _Asked, file: Path, overrides: Sequence[str], node_rank: int | None
) -> tuple[outer_loop.Job, Description]:
    """Return what to start, and how that is shown. Raises ConfigError where it cannot work."""
    from data_pipeline.storage.output import check_output
    from trainer.config.reading import load_config

    words = ["--config", str(file.absolute()), *overrides]
    _refuse_passwords(words)
    settings = load_config(file, list(overrides))
    check_output(settings.run)
    hosts, rules = _choose(settings, asked)
    timeouts = _timeouts(settings, asked, rules)
    timeouts.check()
    supervision = Supervision(
        run=settings.run.absolute(),
        words=words,
        rules=rules,
        limits=asked.limits,
        port=asked.options.port or usual_port(settings.run),
        grace=asked.options.grace,
        devices=_devices(asked.options.devices, rules.ranks),
    )
    over_ssh = asked.reaches_hosts and not hosts.is_this_machine
    carried, kept = split_secrets(needed_names(), os.environ) if over_ssh else (None, [])

    def request(hosts: Hosts) -> LaunchRequest:
        nodes = rules.most(len(hosts.slots)) or rules.nodes
        fewer = rules.model_copy(update={"nodes": nodes, "spares": len(hosts.slots) - nodes})
        return LaunchRequest(
            module=MODULE,
            arguments=replace(supervision, rules=fewer).arguments(),
            hosts=hosts,
            port=supervision.port + 1,
            folder=supervision.run / "launch",
            name=supervision.run.name,
            ranks_per_host=rules.ranks,
            grace=supervision.grace,
            carried=carried or (),
            options=asked.own,
        )

    plan = BACKENDS[asked.backend].plan(request(hosts))
    job = outer_loop.Job(
        run=supervision.run,
        backend=asked.backend,
        hosts=hosts,
        rules=rules,
        grace=supervision.grace,
        port=supervision.port,
        request=request,
        node=_own_node(plan, node_rank),
        asks_hosts=over_ssh,
    )
    return job, Description(
        backend=asked.backend,
        hosts=hosts,
        supervision=supervision,
        batch=_batch(settings, rules.nodes * rules.ranks),
        timeouts=timeouts,
        plan=plan,
        carried=carried,
        kept=kept,
        again=["addp", *_for_other_hosts(sys.argv[1:])],
    )


def _start(job: outer_loop.Job, description: Description, *, stdout: int | None) -> None:
    """Start what was planned, and see it through unless a scheduler does."""
    plan = description.plan
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
    print(*plan.afterwards, sep="\n", file=sys.stderr if stdout == 2 else sys.stdout, flush=True)


def _write(plan: LaunchPlan, path: Path) -> None:
    """Write what a scheduler is given to a file. Raises BadParameter where there is no scheduler,
    and ConfigError where the file cannot be written."""
    if plan.waits:
        raise typer.BadParameter(
            "there is no script for a scheduler in this plan; --dry-run shows it",
            param_hint="--write",
        )
    (file,) = plan.files
    with written([replace(file, path=path)]):
        pass


def _for_other_hosts(words: Sequence[str]) -> list[str]:
    """Return the words of this command line without those that only this call of it has."""
    kept, skips = [], False
    for word in words:
        name = word.partition("=")[0]
        if not skips and name not in ("--dry-run", "--json", "--node-rank"):
            kept.append(word)
        skips = word == "--node-rank"
    return kept


def _own_node(plan: LaunchPlan, node_rank: int | None) -> int | None:
    """Return the number of the command that this host runs. Raises BadParameter."""
    if node_rank is None:
        return None
    if len(plan.commands) == 1:
        raise typer.BadParameter("one command starts all hosts here", param_hint="--node-rank")
    if node_rank >= len(plan.commands):
        raise typer.BadParameter(
            f"the hosts count from 0 to {len(plan.commands) - 1}", param_hint="--node-rank"
        )
    return node_rank


def _choose(settings: RunConfig, asked: _Asked) -> tuple[Hosts, Rules]:
    """Return the hosts with one supervisor on each, and the rules for them.

    Raises ConfigError where they do not fit each other, the batch, or `expect_ranks`.
    """
    from trainer.pretrain import check_ranks
    from trainer.schedule import accumulation_steps, possible_world_sizes

    options = asked.options
    hosts, nodes, ranks = (
        _unlisted(asked) if asked.hostfile is None else _listed(asked.hostfile, options)
    )
    world = nodes * ranks
    check_ranks(settings.expect_ranks, world)
    accumulation_steps(settings, world)
    if options.min_nodes is not None and options.min_nodes > nodes:
        raise ConfigError(f"--min-nodes {options.min_nodes} is more than the {nodes} nodes")
    return hosts.with_processes(1), Rules(
        nodes=nodes,
        ranks=ranks,
        min_nodes=options.min_nodes,
        spares=len(hosts.slots) - nodes,
        worlds=tuple(size for size in possible_world_sizes(settings) if size <= world),
        max_restarts=options.max_restarts,
        rejoin=_rejoin(asked, hosts),
        grow=options.grow,
    )


def _rejoin(asked: _Asked, hosts: Hosts) -> float:
    if asked.options.rejoin is not None:
        return asked.options.rejoin
    return 5.0 if asked.reaches_hosts and not hosts.is_this_machine else 120.0


def _listed(hostfile: Path, options: LaunchOptions) -> tuple[Hosts, int, int]:
    """Return the hosts of a hostfile, and how many of them train, with how many ranks each."""
    hosts = choose_hosts(hostfile, options.processes, options.master_addr)
    there, slots = len(hosts.slots), set(hosts.slots.values())
    nodes = options.nodes or there - options.spares
    if nodes < 1 or nodes + options.spares > there:
        raise ConfigError(
            f"{hostfile} lists {there} hosts, which are too few for {max(nodes, 1)} nodes and "
            f"{options.spares} spares"
        )
    if len(slots) > 1:
        raise ConfigError(
            f"the hosts of {hostfile} have different slots, and each node gets the same number of "
            "ranks: give it with --processes"
        )
    if options.spares:
        hosts = hosts.among(hosts.names[: nodes + options.spares])
    return hosts, nodes, slots.pop()


def _unlisted(asked: _Asked) -> tuple[Hosts, int, int]:
    """Return the hosts where no hostfile lists them, and how many train, with how many ranks."""
    options = asked.options
    nodes, ranks = options.nodes or 1, options.processes or 1
    count = nodes + options.spares
    if count == 1 and asked.has_no_scheduler and options.master_addr is None:
        return this_machine(1), nodes, ranks
    if asked.reaches_hosts:
        raise ConfigError(f"{count} nodes need a hostfile that lists them; give it with --hostfile")
    if asked.has_no_scheduler and asked.backend != "local" and options.master_addr is None:
        raise ConfigError(
            f"{count} nodes have to know where they meet: give the first one's address with "
            "--master-addr, or all of them with --hostfile"
        )
    return Hosts(unnamed(count, 1).slots, checked_address(options.master_addr)), nodes, ranks


def _timeouts(settings: RunConfig, asked: _Asked, rules: Rules) -> Timeouts:
    from trainer import costs

    grace = asked.options.grace
    return Timeouts(
        step=asked.limits.limit_step,
        hang=settings.health.hang,
        collective=settings.collective_timeout,
        grace=grace,
        save=costs.checkpoint_bytes(settings) / (rules.fewest * rules.ranks) / _WRITE,
        notice=None if asked.has_no_scheduler else grace + NOTICE_MARGIN,
    )


def _batch(settings: RunConfig, world: int) -> Batch:
    from trainer.schedule import accumulation_steps

    batch = settings.batch
    return Batch(batch.global_batch, batch.micro, accumulation_steps(settings, world))


def _devices(devices: str | None, ranks: int) -> str | None:
    """Return the devices as they were given. Raises BadParameter where they are no list of them."""
    if devices is None:
        return None
    if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", devices, re.ASCII):
        raise typer.BadParameter(f"{devices!r} is no list as 0,1", param_hint="--devices")
    if len(devices.split(",")) < ranks:
        raise typer.BadParameter(f"fewer than the {ranks} ranks", param_hint="--devices")
    return devices


def _refuse_passwords(words: Sequence[str]) -> None:
    """Raise ConfigError for an override with a password: everybody can read a command line."""
    for word in words:
        if has_login(word):
            raise ConfigError(
                f"{word.partition('=')[0]} holds a password, which every user of a host could read "
                "on the command line; keep credentials in ~/.aws/credentials on each host"
            )
