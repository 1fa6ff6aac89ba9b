"""Whether each node reaches each other one, and whether they have the same time.

Launchers, gloo and NCCL connect on ports that nobody knows before, so that all TCP ports must be
open between the nodes. Imports no torch but that of the exchange.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from trainer.preflight.doctor import probes
from trainer.preflight.doctor.exchange import Exchange
from trainer.preflight.finding import Finding

_APART, _FAR_APART = 1.0, 300.0  # seconds between clocks
_LOOPBACK = ("127.", "::1")


def call_each_other(
    exchange: Exchange, addresses: Sequence[str], names: Sequence[str], low: int, high: int
) -> list[Finding]:
    """Have each node call the others, at a port that the system chooses and at one of the range.
    All nodes call this together.

    addresses: of the nodes, empty where one has none. low, high: the range of ports.
    """
    world = exchange.world
    token = exchange.tell("token", lambda: secrets.token_hex(probes.TOKEN_BYTES))
    if token is None:
        return []
    server = probes.serve_within(bytes.fromhex(token), low, high)
    try:
        ports = exchange.gather("ports", server.ports)
        places = [
            (other, addresses[other], ports[other])
            for other in probes.targets(world.rank, world.size)
            if ports[other] and addresses[other]
        ]
        called = probes.call_all(places, bytes.fromhex(token))
        answers = exchange.gather("calls", called, 60 + 6 * world.size)
    finally:
        server.close()
    called_by = [[probes.Reached(*one) for one in answer or ()] for answer in answers]
    return judge_calls(called_by, names) + judge_clocks(called_by, names)


def judge_calls(calls: Sequence[Sequence[probes.Reached]], names: Sequence[str]) -> list[Finding]:
    """Return what the calls between nodes say. calls: by the node that called."""
    findings = []
    for caller, made in enumerate(calls):
        for call in made:
            if call.error:
                found = (
                    f"{names[caller]} does not reach {names[call.node]} at "
                    f"{call.address}:{call.port}: {call.error}"
                )
                todo = "open all TCP ports between the nodes, or name a network that is open in "
                todo += "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
                findings.append(Finding("reachability", "FAILED", found, todo))
    good = [call for made in calls for call in made if not call.error]
    if good and not findings:
        slowest = max(call.trip for call in good)
        found = f"{len(good)} calls between nodes arrive, there and back in {slowest * 1e3:.2f} ms"
        findings.append(Finding("reachability", "ok", f"{found} at most"))
    return findings


def judge_clocks(calls: Sequence[Sequence[probes.Reached]], names: Sequence[str]) -> list[Finding]:
    """Compare each node's clock with that of node 0, as far as a trip leaves no doubt."""
    findings, most = [], 0.0
    for caller, made in enumerate(calls):
        to_first = [call for call in made if call.node == 0 and not call.error]
        if not to_first:
            continue
        best = min(to_first, key=lambda call: call.trip)
        apart = max(0.0, abs(best.ahead) - best.trip / 2)
        most = max(most, apart)
        if apart < _APART:
            continue
        way = "behind" if best.ahead > 0 else "ahead of"
        found = f"the clock of {names[caller]} is {apart:.1f} s {way} that of {names[0]}"
        state = "FAILED" if apart > _FAR_APART else "warning"
        todo = "synchronise them (chrony, ntpd); a store refuses requests of another time"
        findings.append(Finding("clocks", state, found, todo))  # type: ignore[arg-type]
    if not findings and any(calls):
        findings.append(Finding("clocks", "ok", f"at most {most * 1e3:.1f} ms apart"))
    return findings


def is_deaf(listens: str | None) -> bool:
    """Return whether gloo would listen where no other host reaches it. listens: the address; empty
    where there is none, None where an interface is named."""
    return listens is not None and (not listens or listens.startswith(_LOOPBACK))


def judge_own_names(listening: Mapping[str, str | None]) -> list[Finding]:
    """Return which hosts would listen where no other one reaches them: gloo takes the address of
    the host's own name, unless it is told an interface. listening: those addresses, by node."""
    findings = []
    for name, address in listening.items():
        if is_deaf(address):
            meaning = f"{address}, its own loopback" if address else "no address"
            found = f"on {name}, the host's name stands for {meaning}: no other node reaches it"
            todo = "set GLOO_SOCKET_IFNAME on all nodes, or mend /etc/hosts there"
            findings.append(Finding("own name", "FAILED", found, todo))
    return findings
