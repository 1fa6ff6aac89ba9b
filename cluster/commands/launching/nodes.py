"""Which hosts become nodes of a run, and what the supervisors may do with them."""

from __future__ import annotations

from pathlib import Path

from cluster.commands.launching.options import Asked, LaunchOptions
from cluster.launch.hosts import Hosts, checked_address, choose_hosts, this_machine, unnamed
from cluster.supervise.policy import Rules
from model.errors import ConfigError
from trainer.config.schema import RunConfig


def choose_nodes(settings: RunConfig, asked: Asked) -> tuple[Hosts, Rules]:
    """Return the hosts with one supervisor on each, and the rules for them.

    Raises ConfigError where they do not fit each other, the batch, or `expect_ranks`.
    """
    from trainer.pretrain import check_ranks
    from trainer.schedule import accumulation_steps, possible_world_sizes

    options = asked.options
    if asked.hostfile is not None and not asked.has_no_scheduler:
        raise ConfigError(
            f"{asked.backend} chooses the hosts by itself: give their number with --nodes, and no "
            "--hostfile"
        )
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


def _rejoin(asked: Asked, hosts: Hosts) -> float:
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


def _unlisted(asked: Asked) -> tuple[Hosts, int, int]:
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
