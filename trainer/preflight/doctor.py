"""Find out whether a run would train on these nodes. One process on each of them; none trains.

    addp doctor CONFIG --hostfile hosts
    srun -N4 --ntasks-per-node=1 python -m trainer.preflight.doctor --config base

Every node is looked at by itself, then all of them together: do they meet, reach each other, have
the same time, versions and configuration, see the same run folder, and is the store fast enough.
Node 0 prints the answer. Nothing is left behind. Exits with 0, or with 78 where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from model.errors import ADDPError, ConfigError
from trainer.config.arguments import configured
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.environment import Settings, settings
from trainer.distributed.environment import differences as environment_differences
from trainer.distributed.world import World, take_world
from trainer.preflight import needs, probes, sameness
from trainer.preflight.device import check_devices, judge_rates
from trainer.preflight.disk import nearest_folder
from trainer.preflight.exchange import Exchange, NodesNotMet, meet
from trainer.preflight.finding import Finding, finding_of, guarded
from trainer.preflight.gpus import GPU, driver_version
from trainer.preflight.links import Link, exchange_tensors
from trainer.preflight.node import check_node
from trainer.preflight.reachability import call_each_other, judge_own_names
from trainer.preflight.reporting import labels, make_answer, show, to_lines
from trainer.preflight.sharing import check_sharing
from trainer.resilience.leaving import leave
from trainer.run_folder import EXIT_CONFIG, EXIT_DONE

_MEETING = 120.0  # seconds in which the nodes must meet
_GRACE = 60.0  # seconds that supervisors give a run to save
_SIGHT = 30.0  # seconds within which a node must see what another one writes
_DEVICES = 400.0  # seconds for a node's own checks
_PORTS = "30000-32699"  # where supervised ranks meet; any range can be named


class Wanted(NamedTuple):
    """What the command line asks for. file, overrides: the configuration; both empty: none. low,
    high: the ports of which one is tried between each two nodes. meeting, sight: seconds in which
    all must come, and see a file of another one. grace: seconds for a save when asked to stop."""

    file: Path | None = None
    overrides: Sequence[str] = ()
    devices: bool = True
    low: int = 30_000
    high: int = 32_699
    meeting: float = _MEETING
    sight: float = _SIGHT
    grace: float = _GRACE


class Own(NamedTuple):
    """What this node has found out by itself. rates: TFLOP/s of each GPU."""

    config: RunConfig | None
    findings: list[Finding]
    gpus: list[GPU]
    rates: dict[str, float]


def meet_or_tell(wanted: Wanted, world: World, say: Callable[[str], None]) -> Exchange:
    """Meet the other nodes. Raises NodesNotMet where this one cannot; what is wrong with it alone
    is said before."""
    try:
        return meet(world, wanted.meeting, say)
    except NodesNotMet:
        for one in look(wanted).findings:
            if one.state != "ok":
                say(f"{one.state} {one.name}: {one.text}")
        raise


def examine(wanted: Wanted, exchange: Exchange, say: Callable[[str], None]) -> dict[str, Any]:
    """Make all checks; all nodes call this together. Returns the answer, the same on all of them.

    say: told what is going on. Raises NodesNotMet where node 0 goes away.
    """
    began, world = time.monotonic(), exchange.world
    exchange.gather("here", True, wanted.meeting)
    absent = set(exchange.lost)
    own = look(wanted)
    nodes = _introduce(own, exchange)
    between = _missing(nodes, absent, wanted.meeting) + _compare(nodes)
    checks = {node["node"]: node["checks"] for node in nodes if node["checks"] is not None}
    there = exchange.tell("there", lambda: sorted(checks)) or ()
    exchange.go_on_with(there)
    measured: list[Link] = []
    names = labels(nodes)
    if len(there) > 1:
        say(f"{len(there)} of {world.size} nodes answer; they call each other")
        addresses = [node.get("address", "") for node in nodes]
        between += call_each_other(exchange, addresses, names, wanted.low, wanted.high)
        unreached = any(one.state == "FAILED" and one.name in _NO_LINKS for one in between)
        alike = len({bool(node.get("gpus")) for node in nodes}) == 1  # else no library fits all
        if exchange.tell("go", lambda: alike and not (unreached or exchange.lost)):
            found, measured = exchange_tensors(exchange, names)
            between += found
        else:
            todo = "mend what FAILED between the nodes, and run this again"
            between.append(Finding("links", "warning", "not measured", todo))
    for node, finding in _look_together(own, exchange, wanted):
        checks.setdefault(node, []).append(finding)
    between += _look_at_store(own, nodes, exchange)
    return make_answer(
        [{**node, "checks": checks.get(node["node"], [])} for node in nodes],
        between,
        links=[link._asdict() for link in measured],
        seconds=round(time.monotonic() - began, 1),
    )


_NO_LINKS = ("reachability", "own name")


def look(wanted: Wanted) -> Own:
    """Return what this node finds out by itself."""
    config, findings = _read(wanted)
    gpus: list[GPU] = []
    rates: dict[str, float] = {}
    findings += check_node(config.run.absolute() if config else None, gpus)
    if gpus and not torch.cuda.is_available():
        found = f"the driver lists {len(gpus)} GPUs, and PyTorch sees none of them"
        todo = "install a PyTorch that is built for CUDA and this driver: docs/gpu.md"
        findings.append(Finding("device", "FAILED", found, todo))
    if wanted.devices:
        findings += guarded("device", lambda: check_devices(rates), _DEVICES)
    if config is not None:
        findings += guarded("data and weights", lambda: needs.check_places(config), 120)
        findings += guarded("data.cache", lambda: needs.check_cache(config), 30)
    return Own(config, findings, gpus, rates)


def _read(wanted: Wanted) -> tuple[RunConfig | None, list[Finding]]:
    if wanted.file is None and not wanted.overrides:
        return None, []
    try:
        config = load_config(wanted.file, list(wanted.overrides))
    except ADDPError as error:
        return None, [Finding("configuration", "FAILED", str(error))]
    hang, timeout = config.health.hang, config.collective_timeout
    findings = [
        Finding("configuration", "ok", f"objective {config.objective}, {config.precision}"),
        Finding("time-outs", "ok", f"health.hang {hang:g} s < collective_timeout {timeout:g} s"),
    ]
    if hang == 0:
        found = f"health.hang is 0: a rank that hangs ends after collective_timeout, {timeout:g} s"
        findings[1] = Finding("time-outs", "warning", found, "set it, below collective_timeout")
    return config, findings


def _introduce(own: Own, exchange: Exchange) -> list[dict[str, Any]]:
    """Return what each node has found by itself: {"node", "host", "checks", "facts", ...}."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(os.environ.get("MASTER_PORT", "29500"))
    driver = driver_version() if own.gpus else ""
    answer = {
        "node": exchange.world.rank,
        "host": platform.node(),
        "address": probes.own_address(address, port),
        "listens": probes.listening_address(),
        "gpus": len(own.gpus),
        "rates": own.rates,
        "environment": settings(platform.node()).names,
        "facts": sameness.facts(own.config, [gpu.name for gpu in own.gpus], driver),
        "checks": [one._asdict() for one in own.findings],
    }
    answers = exchange.gather("nodes", answer, _DEVICES + 240)
    return [
        {**one, "checks": [finding_of(check) for check in one["checks"]]}
        if one is not None
        else {"node": node, "host": f"node {node}", "checks": None}
        for node, one in enumerate(answers)
    ]


def _missing(nodes: list[dict[str, Any]], absent: set[int], seconds: float) -> list[Finding]:
    """Return which nodes did not answer. absent: those that did not even come."""
    findings = []
    for node in nodes:
        if node["node"] in absent:
            found = f"node {node['node']} has not come within {seconds:g} s"
            todo = "look whether it started, at its messages above, and at the firewall"
        elif node["checks"] is None:
            found, todo = f"node {node['node']} came, and did not answer", "look at its messages"
        else:
            continue
        findings.append(Finding("nodes", "FAILED", found, todo))
    return findings


def _compare(nodes: list[dict[str, Any]]) -> list[Finding]:
    """Return what differs between the nodes that answered."""
    there = [node for node in nodes if node["checks"] is not None]
    names = labels(there)
    pairs = [(name, node["facts"]) for name, node in zip(names, there, strict=True)]
    findings = list(sameness.differences(pairs))
    rates = {
        f"{name} {device}": rate
        for name, node in zip(names, there, strict=True)
        for device, rate in node["rates"].items()
    }
    findings += judge_rates(rates)
    if len(nodes) == 1:
        return findings
    lines = environment_differences([Settings(node["host"], node["environment"]) for node in there])
    todo = (
        "launchers pass on little: see docs/operations.md; no matter where they differ on purpose"
    )
    findings += [Finding("environment", "warning", line, todo) for line in lines]
    if not lines:
        names_set = sorted(there[0]["environment"])
        found = f"the same on all nodes: {', '.join(names_set) or 'nothing is set'}"
        findings.append(Finding("environment", "ok", found))
    if len({node["address"] for node in there}) > 1:
        findings += judge_own_names(
            {
                name: node["listens"]
                for name, node in zip(names, there, strict=True)
                if node["listens"] is not None
            }
        )
    return findings


def _look_together(own: Own, exchange: Exchange, wanted: Wanted) -> list[tuple[int, Finding]]:
    """Return what each node sees of the run folder and how fast it writes while all others do, with
    its number."""
    has_config = [bool(one) for one in exchange.gather("configured", own.config is not None)]
    if not any(has_config):
        return []
    config = own.config
    findings: list[Finding] = []
    if exchange.world.size > 1:
        findings += check_sharing(config.run if config else None, exchange, wanted.sight)
    exchange.gather("write", True)  # so that all write at the same time
    if config is not None:
        findings += guarded(
            "saving", lambda: iter(_saving(config, own, exchange, wanted.grace)), 120
        )
    answers = exchange.gather("written", [one._asdict() for one in findings], 180)
    return [
        (node, finding_of(record)) for node, answer in enumerate(answers) for record in answer or ()
    ]


def _saving(config: RunConfig, own: Own, exchange: Exchange, grace: float) -> Iterator[Finding]:
    nodes = exchange.world.size
    saves = needs.cadence(config, nodes * max(1, len(own.gpus)))
    rate = needs.measure_writing(nearest_folder(config.run))
    yield from needs.check_saving(config, saves, nodes, rate, grace)
    if exchange.world.rank == 0:
        yield from needs.check_room(config, saves)


def _look_at_store(own: Own, nodes: list[dict[str, Any]], exchange: Exchange) -> list[Finding]:
    """Have node 0, which uploads, try the store."""
    config = own.config
    ranks = sum(max(1, node.get("gpus", 1)) for node in nodes)

    def work() -> list[dict[str, Any]]:
        if config is None:
            return []
        saves = needs.cadence(config, ranks)
        found = guarded("checkpoint.upload", lambda: needs.check_store(config, saves), 120)
        return [one._asdict() for one in found]

    return [finding_of(record) for record in exchange.tell("store", work, 180) or ()]


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65_535:
        raise ConfigError(f"--ports {text!r} is no range such as 30000-32699")
    return int(match[1]), int(match[2])


def main(arguments: list[str] | None = None) -> int:
    """Examine this node together with the others. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=os.environ.pop("ADDP_PROGRAM", "python -m trainer.preflight.doctor"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="run file (YAML) or recipe")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)  # for `addp doctor`
    parser.add_argument("--no-device", action="store_true", help="compute nothing on the devices")
    parser.add_argument("--ports", default=_PORTS, help="range, of which one is tried")
    parser.add_argument("--meeting", type=float, default=_MEETING, help="seconds for all to start")
    parser.add_argument("--sight", type=float, default=_SIGHT, help="seconds to see a shared file")
    parser.add_argument("--grace", type=float, default=_GRACE, help="seconds for a stop to save")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", metavar="FILE|key=value")
    options = parser.parse_intermixed_args(arguments)
    file, overrides = configured(options.config, options.arguments)
    wanted = Wanted(
        file,
        overrides,
        not options.no_device,
        *_ports(options.ports),
        meeting=options.meeting,
        sight=options.sight,
        grace=options.grace,
    )
    world = take_world()

    def say(line: str) -> None:
        if world.rank == 0 or line.startswith("FAILED"):
            print(f"doctor: {platform.node()}: {line}", file=sys.stderr, flush=True)

    exchange = meet_or_tell(wanted, world, say)
    answer = examine(wanted, exchange, say)
    if world.rank == 0:
        if options.lines:
            print("\n".join(to_lines(answer)), flush=True)
        elif options.json:
            print(json.dumps(answer, indent=1), flush=True)
        else:
            show(answer, Console(width=None if sys.stdout.isatty() else 160))
    exchange.end()
    return EXIT_DONE if answer["ready"] else EXIT_CONFIG


if __name__ == "__main__":
    leave(main)
