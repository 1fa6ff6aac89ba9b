"""The examination that all nodes make together: each looks at itself, then they look at each other,
at their run folder and at the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config.schema import RunConfig
from trainer.distributed.world import World
from trainer.preflight.doctor import needs
from trainer.preflight.doctor.comparing import compare, missing
from trainer.preflight.doctor.exchange import Exchange, NodesNotMet, meet
from trainer.preflight.doctor.links import Link, exchange_tensors
from trainer.preflight.doctor.looking import Node, Own, introduce, look
from trainer.preflight.doctor.reachability import call_each_other, is_deaf
from trainer.preflight.doctor.reporting import labels, make_answer
from trainer.preflight.doctor.sharing import check_sharing
from trainer.preflight.finding import Finding, finding_of, guarded
from trainer.preflight.node.disk import nearest_folder

PORTS = (30_000, 32_699)  # where supervised ranks meet; any range can be named


class Wanted(NamedTuple):
    """What the command line asks for. file, overrides: the configuration; both empty: none. low,
    high: the ports of which one is tried between each two nodes. meeting, sight: seconds in which
    all must come, and see a file of another one. grace: seconds for a save when asked to stop."""

    file: Path | None = None
    overrides: Sequence[str] = ()
    devices: bool = True
    low: int = PORTS[0]
    high: int = PORTS[1]
    meeting: float = 120.0
    sight: float = 30.0
    grace: float = 60.0


def meet_or_tell(wanted: Wanted, world: World, say: Callable[[str], None]) -> Exchange:
    """Meet the other nodes. Raises NodesNotMet where this one cannot; what is wrong with it alone
    is said before."""
    try:
        return meet(world, wanted.meeting, say)
    except NodesNotMet:
        for one in look(wanted.file, wanted.overrides, wanted.devices).findings:
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
    own = look(wanted.file, wanted.overrides, wanted.devices)
    nodes = introduce(own, exchange)
    between = missing(nodes, absent, wanted.meeting) + compare(nodes)
    answered = [node.number for node in nodes if node.checks is not None]
    there = exchange.tell("there", lambda: answered) or ()
    exchange.go_on_with(there)
    measured: list[Link] = []
    if len(there) > 1:
        say(f"{len(there)} of {world.size} nodes answer; they call each other")
        found, measured = _connect(nodes, exchange, wanted)
        between += found
    later = _look_together(own, exchange, wanted)
    between += _look_at_store(own, nodes, exchange)
    return make_answer(
        [
            node._replace(checks=[*(node.checks or ()), *later[node.number]]).record()
            for node in nodes
        ],
        between,
        links=[link._asdict() for link in measured],
        seconds=round(time.monotonic() - began, 1),
    )


def _connect(
    nodes: Sequence[Node], exchange: Exchange, wanted: Wanted
) -> tuple[list[Finding], list[Link]]:
    """Have the nodes call each other, and exchange tensors where all calls arrive."""
    names = labels([(node.number, node.host) for node in nodes])
    addresses = [node.address for node in nodes]
    findings = call_each_other(exchange, addresses, names, wanted.low, wanted.high)
    unreached = any(one.state == "FAILED" for one in findings if one.name == "reachability")
    deaf = len(set(addresses)) > 1 and any(is_deaf(node.listens) for node in nodes)
    mixed = len({bool(node.gpus) for node in nodes}) > 1  # no library fits all
    in_the_way = unreached or deaf or mixed or bool(exchange.lost)
    if exchange.tell("go", lambda: not in_the_way):
        found, measured = exchange_tensors(exchange, names)
        return findings + found, measured
    todo = "mend what FAILED between the nodes, and run this again"
    return [*findings, Finding("links", "warning", "not measured", todo)], []


def _look_together(own: Own, exchange: Exchange, wanted: Wanted) -> list[list[Finding]]:
    """Return what each node sees of the run folder, and how fast it writes while all others do."""
    if not any(exchange.gather("configured", own.config is not None)):
        return [[] for _ in range(exchange.world.size)]
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
    return [[finding_of(record) for record in answer or ()] for answer in answers]


def _saving(config: RunConfig, own: Own, exchange: Exchange, grace: float) -> Iterator[Finding]:
    nodes = exchange.world.size
    saves = needs.cadence(config, nodes * max(1, len(own.gpus)))
    rate = needs.measure_writing(nearest_folder(config.run))
    yield from needs.check_saving(config, saves, nodes, rate, grace)
    if exchange.world.rank == 0:
        yield from needs.check_room(config, saves)


def _look_at_store(own: Own, nodes: Sequence[Node], exchange: Exchange) -> list[Finding]:
    """Have node 0, which uploads, try the store."""
    config = own.config
    ranks = sum(max(1, node.gpus) for node in nodes)

    def work() -> list[dict[str, Any]]:
        if config is None:
            return []
        saves = needs.cadence(config, ranks)
        found = guarded("checkpoint.upload", lambda: needs.check_store(config, saves), 120)
        return [one._asdict() for one in found]

    return [finding_of(record) for record in exchange.tell("store", work, 180) or ()]
