"""A launch as it is shown before anything happens: who starts what where, and how long who waits.

Names of variables are shown, their values never; files that hold values are named only.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.launch.backend import HERE, LaunchPlan
from cluster.launch.hosts import Hosts
from cluster.launch.supervised import Supervision
from cluster.launch.timeouts import Timeout, Timeouts
from cluster.supervise.ranks import PORTS


@dataclass(frozen=True)
class Batch:
    """The batch arithmetic: images of a step, of a micro batch, and micro batches of a rank."""

    size: int
    micro: int
    accumulation: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a launch before it begins.

    carried: names of the variables that are brought to other hosts; None: each host has its own.
    kept: names of those that hold a secret, and stay here.
    again: the words of this launch, which each host repeats where each has its own command.
    """

    backend: str
    hosts: Hosts
    supervision: Supervision
    batch: Batch
    timeouts: Timeouts
    plan: LaunchPlan
    carried: Sequence[str] | None
    kept: Sequence[str]
    again: Sequence[str]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        supervision, rules = self.supervision, self.supervision.rules
        return {
            "run": str(supervision.run),
            "backend": self.backend,
            "nodes": rules.nodes,
            "spares": rules.spares,
            "min_nodes": rules.fewest,
            "ranks_per_node": rules.ranks,
            "ranks": rules.nodes * rules.ranks,
            "worlds": list(rules.worlds),
            "batch": vars(self.batch),
            "hosts": self.hosts.names,
            "address": self.hosts.meeting_address,
            "ports": {
                "coordinator": supervision.port,
                "launcher": supervision.port + 1,
                "ranks": [PORTS[0], PORTS[-1]],  # one of these
            },
            "variables": {
                "carried": None if self.carried is None else list(self.carried),
                "kept": list(self.kept),
            },
            "timeouts": [timeout._asdict() for timeout in self._timeouts()],
            "commands": [
                {
                    "where": command.where,
                    "words": list(command.words),
                    "line": shlex.join(command.words),
                    "variables": sorted(command.environment),
                }
                for command in self.plan.commands
            ],
            "files": [
                {"path": str(file.path), "text": None if file.private else file.text}
                for file in self.plan.files
            ],
        }

    def show(self, console: Console, *, texts: bool) -> None:
        """Print it for people. texts: also what stands in the files."""
        table = Table.grid(padding=(0, 2))
        for name, value in self._lines():
            table.add_row(f"[bold]{name}", escape(value))
        console.print(table)
        self._show_timeouts(console)
        for number, command in enumerate(self.plan.commands):
            where = f"on {command.where}" if command.where != HERE else "the command"
            console.print(f"[bold]{where}", highlight=False)
            if command.where != HERE:
                words = [*self.again, "--node-rank", str(number)]
                console.print(f"  {escape(shlex.join(words))}", soft_wrap=True, highlight=False)
                console.print("  which runs", highlight=False)
            console.print(f"  {escape(shlex.join(command.words))}", soft_wrap=True, highlight=False)
        for file in self.plan.files:
            private = " (holds values of variables; removed after the launch)"
            note = private if file.private else ""
            console.print(f"[bold]file[/] {escape(str(file.path))}{note}", soft_wrap=True)
            if texts and not file.private:
                console.print(escape(file.text), soft_wrap=True, highlight=False)

    def _lines(self) -> list[tuple[str, str]]:
        supervision, rules = self.supervision, self.supervision.rules
        ranks = rules.nodes * rules.ranks
        nodes = f"{rules.nodes} of {rules.ranks} ranks, together {ranks}"
        if rules.spares:
            nodes += f"; {rules.spares} spare"
        if rules.fewest < rules.nodes:
            nodes += f"; at least {rules.fewest}"
        batch = self.batch
        carried = "each host's own"
        if self.carried is not None:
            carried = ", ".join(self.carried) or "none"
        lines = [
            ("run", str(supervision.run)),
            ("backend", self.backend),
            ("hosts", _few(self.hosts.names)),
            ("nodes", nodes),
            (
                "batch",
                f"{batch.size} images = {ranks} ranks x {batch.accumulation} x {batch.micro}",
            ),
            ("possible ranks", ", ".join(map(str, rules.worlds)) or "any"),
            (
                "meeting",
                f"{self.hosts.meeting_address}, ports {supervision.port} (coordinator), "
                f"{supervision.port + 1} (launcher), one of {PORTS[0]}-{PORTS[-1]} (ranks)",
            ),
            ("gives up", f"after {rules.max_restarts} failures without progress"),
            ("variables", carried),
        ]
        if self.kept:
            lines.append(("stay here", f"{', '.join(self.kept)} (each host needs its own)"))
        return lines

    def _show_timeouts(self, console: Console) -> None:
        table = Table(box=box.SIMPLE, padding=(0, 1))
        table.add_column("time-out")
        table.add_column("seconds", justify="right")
        table.add_column("meaning")
        table.add_column("set by")
        for timeout in self._timeouts():
            seconds = "-" if timeout.seconds is None else f"{timeout.seconds:.1f}"
            table.add_row(
                timeout.name, seconds.removesuffix(".0"), timeout.meaning, timeout.setting
            )
        console.print(table)

    def _timeouts(self) -> list[Timeout]:
        return [*self.timeouts.finding_out(), *self.timeouts.saving()]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
