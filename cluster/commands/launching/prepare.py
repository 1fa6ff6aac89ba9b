"""What `addp launch` starts, and how that is shown, before anything happens."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import typer

from cluster.commands.launching.nodes import choose_nodes
from cluster.commands.launching.options import Asked
from cluster.launch.backend import LaunchPlan, LaunchRequest
from cluster.launch.backends import BACKENDS
from cluster.launch.description import Batch, Description
from cluster.launch.hosts import Hosts
from cluster.launch.outer_loop import Job
from cluster.launch.supervised import MODULE, Supervision, usual_port
from cluster.launch.timeouts import NOTICE_MARGIN, Timeouts
from cluster.launch.variables import refuse_passwords, split_secrets
from cluster.supervise.policy import Rules
from trainer.config.schema import RunConfig
from trainer.distributed.environment import needed_names

# Bytes a second at which a rank writes its part of a checkpoint, as `addp plan` has it.
_WRITE_RATE = 1e9


def prepare(
    asked: Asked, file: Path, overrides: Sequence[str], node_rank: int | None
) -> tuple[Job, Description]:
    """Return what to start, and how that is shown. Raises ConfigError where it cannot work."""
    from data_pipeline.storage.output import check_output
    from trainer.config.reading import load_config

    words = ["--config", str(file.absolute()), *overrides]
    refuse_passwords(words)
    settings = load_config(file, list(overrides))
    check_output(settings.run)
    hosts, rules = choose_nodes(settings, asked)
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
    request = partial(_request, asked, supervision, carried or ())
    plan = BACKENDS[asked.backend].plan(request(hosts))
    job = Job(
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


def _request(
    asked: Asked, supervision: Supervision, carried: Sequence[str], hosts: Hosts
) -> LaunchRequest:
    """Return the request to start the supervisors on those of the hosts that are there."""
    rules = supervision.rules
    nodes = rules.most(len(hosts.slots)) or rules.nodes
    there = rules.model_copy(update={"nodes": nodes, "spares": len(hosts.slots) - nodes})
    return LaunchRequest(
        module=MODULE,
        arguments=replace(supervision, rules=there).arguments(),
        hosts=hosts,
        port=supervision.port + 1,
        folder=supervision.run / "launch",
        name=supervision.run.name,
        ranks_per_host=rules.ranks,
        grace=supervision.grace,
        carried=carried,
        options=asked.own,
    )


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


def _timeouts(settings: RunConfig, asked: Asked, rules: Rules) -> Timeouts:
    from trainer import costs

    grace = asked.options.grace
    return Timeouts(
        step=asked.limits.limit_step,
        hang=settings.health.hang,
        collective=settings.collective_timeout,
        grace=grace,
        save=costs.checkpoint_bytes(settings) / (rules.fewest * rules.ranks) / _WRITE_RATE,
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
        raise typer.BadParameter(f"{devices!r} is not a list such as 0,1", param_hint="--devices")
    if len(devices.split(",")) < ranks:
        raise typer.BadParameter(f"fewer than the {ranks} ranks", param_hint="--devices")
    return devices
