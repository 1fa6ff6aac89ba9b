"""Which nodes did not answer, and what differs between those that did."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

from trainer.distributed.environment import Settings
from trainer.distributed.environment import differences as environment_differences
from trainer.preflight.doctor import sameness
from trainer.preflight.doctor.looking import Node
from trainer.preflight.doctor.reachability import judge_own_names
from trainer.preflight.doctor.reporting import labels
from trainer.preflight.finding import Finding

_SLOW = 0.8  # of the usual rate of a GPU


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


def judge_rates(rates: Mapping[str, float]) -> Iterator[Finding]:
    """Yield a finding for each GPU that is much slower than the others. rates: by node and GPU."""
    if len(rates) < 2:
        return
    usual = statistics.median(rates.values())
    slow = {name: rate for name, rate in rates.items() if rate < usual * _SLOW}
    for name, rate in slow.items():
        found = f"{name} multiplies {rate:.0f} times 10^12 a second, where {usual:.0f} are usual"
        todo = "look at its clocks and its cooling: all ranks wait for the slowest"
        yield Finding("GPU speed", "warning", found, todo)


def _compare_environments(there: Sequence[Node]) -> list[Finding]:
    lines = environment_differences([Settings(node.host, node.environment) for node in there])
    todo = "launchers pass on little (docs/operations.md); no matter where they differ on purpose"
    if lines:
        return [Finding("environment", "warning", line, todo) for line in lines]
    alike = ", ".join(sorted(there[0].environment)) or "nothing is set"
    return [Finding("environment", "ok", f"the same on all nodes: {alike}")]
