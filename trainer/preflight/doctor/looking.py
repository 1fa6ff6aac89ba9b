"""What one node finds out by itself, and how it introduces itself to the others."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model.errors import ADDPError
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.distributed.environment import settings
from trainer.preflight.doctor import needs, probes, sameness
from trainer.preflight.doctor.exchange import Exchange
from trainer.preflight.finding import Finding, finding_of, guarded
from trainer.preflight.node.device import check_devices
from trainer.preflight.node.fitness import check_node
from trainer.preflight.node.gpus import GPU, driver_version

OWN_SECONDS = 400.0  # for a node's own checks


class Own(NamedTuple):
    """What this node has found out by itself. rates: TFLOP/s of each GPU."""

    config: RunConfig | None
    findings: list[Finding]
    gpus: list[GPU]
    rates: dict[str, float]


class Node(NamedTuple):
    """What a node says of itself.

    address: where the others reach it. listens: the address at which gloo would listen, None where
    GLOO_SOCKET_IFNAME says where. gpus: how many it has. rates: TFLOP/s of each. environment: the
    variables that are set, as `trainer.distributed.environment` has them. facts: what must be the
    same everywhere, by name. checks: None where the node did not answer.
    """

    number: int
    host: str
    address: str
    listens: str | None
    gpus: int
    rates: dict[str, float]
    environment: dict[str, str]
    facts: dict[str, str]
    checks: list[Finding] | None

    def record(self) -> dict[str, Any]:
        """Return the node as JSON has it."""
        fields = self._asdict()
        checks = [one._asdict() for one in self.checks or ()]
        return {"node": fields.pop("number"), **fields, "checks": checks}


def look(file: Path | None, overrides: Sequence[str], devices: bool) -> Own:
    """Return what this node finds out by itself.

    file, overrides: the configuration; both empty: none. devices: whether to compute on them.
    """
    config, findings = _read(file, overrides)
    gpus: list[GPU] = []
    rates: dict[str, float] = {}
    findings += check_node(config.run.absolute() if config else None, gpus)
    if gpus and not torch.cuda.is_available():
        found = f"the driver lists {len(gpus)} GPUs, and PyTorch sees none of them"
        todo = "install a PyTorch that is built for CUDA and this driver: docs/gpu.md"
        findings.append(Finding("device", "FAILED", found, todo))
    if devices:
        findings += guarded("device", lambda: check_devices(rates), OWN_SECONDS)
    if config is not None:
        findings += guarded("data and weights", lambda: needs.check_places(config), 120)
        findings += guarded("data.cache", lambda: needs.check_cache(config), 30)
    return Own(config, findings, gpus, rates)


def _read(file: Path | None, overrides: Sequence[str]) -> tuple[RunConfig | None, list[Finding]]:
    if file is None and not overrides:
        return None, []
    try:
        config = load_config(file, list(overrides))
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


def introduce(own: Own, exchange: Exchange) -> list[Node]:
    """Tell the others what this node has found; all nodes call this. Returns what each one said."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(os.environ.get("MASTER_PORT", "29500"))
    driver = driver_version() if own.gpus else ""
    here = Node(
        number=exchange.world.rank,
        host=platform.node(),
        address=probes.own_address(address, port),
        listens=probes.listening_address(),
        gpus=len(own.gpus),
        rates=own.rates,
        environment=settings(platform.node()).names,
        facts=sameness.facts(own.config, [gpu.name for gpu in own.gpus], driver),
        checks=own.findings,
    )
    answers = exchange.gather("nodes", here.record(), OWN_SECONDS + 240)
    return [_node(number, answer) for number, answer in enumerate(answers)]


def _node(number: int, answer: dict[str, Any] | None) -> Node:
    if answer is None:
        return Node(number, f"node {number}", "", None, 0, {}, {}, {}, None)
    checks = [finding_of(check) for check in answer["checks"]]
    fields = {name: answer[name] for name in Node._fields[1:]}
    return Node(number, **{**fields, "checks": checks})
