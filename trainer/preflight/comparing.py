"""Which nodes did not answer, and what differs between those that did."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.distributed.environment import Settings
from trainer.distributed.environment import differences as environment_differences
from trainer.preflight import sameness
from trainer.preflight.device import judge_rates
from trainer.preflight.finding import Finding
from trainer.preflight.looking import Node
from trainer.preflight.reachability import judge_own_names
from trainer.preflight.reporting import labels


def missing(nodes: Sequence[Node], absent: Collection[int], seconds: float) -> list[Finding]:
    """Return which nodes did not answer. absent: those that did not even come within `seconds`."""
    findings = []
    for node in nodes:
        if node.number in absent:
            found = f"node {node.number} has not come within {seconds:g} s"
            todo = "look whether it started, at its messages above, and at the firewall"
        elif node.checks is None:
            found, todo = f"node {node.number} came, and did not answer", "look at its messages"
        else:
            continue
        findings.append(Finding("nodes", "FAILED", found, todo))
    return findings


def compare(nodes: Sequence[Node]) -> list[Finding]:
    """Return what differs between the nodes that answered."""
    there = [node for node in nodes if node.checks is not None]
    names = labels([(node.number, node.host) for node in there])
    named = dict(zip(names, there, strict=True))
    findings = list(sameness.differences([(name, node.facts) for name, node in named.items()]))
    findings += judge_rates(
        {
            f"{name} {device}": rate
            for name, node in named.items()
            for device, rate in node.rates.items()
        }
    )
    if len(nodes) == 1:
        return findings
    findings += _compare_environments(there)
    if len({node.address for node in there}) > 1:
        findings += judge_own_names({name: node.listens for name, node in named.items()})
    return findings


def _compare_environments(there: Sequence[Node]) -> list[Finding]:
    lines = environment_differences([Settings(node.host, node.environment) for node in there])
    todo = "launchers pass on little (docs/operations.md); no matter where they differ on purpose"
    if lines:
        return [Finding("environment", "warning", line, todo) for line in lines]
    alike = ", ".join(sorted(there[0].environment)) or "nothing is set"
    return [Finding("environment", "ok", f"the same on all nodes: {alike}")]
