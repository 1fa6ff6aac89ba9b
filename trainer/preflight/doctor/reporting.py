"""The answer of the doctor: its form as JSON, as lines that survive a launcher, and on the console.
Imports no torch."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.preflight.finding import Finding, State, finding_of, worst

_COLORS: dict[State, str] = {"ok": "green", "warning": "yellow", "FAILED": "bold red"}
_MARK = "addp-doctor"
_LINE = re.compile(rf"{_MARK} (\d+)/(\d+) ([A-Za-z0-9+/=]*)")
_PIECE = 2000  # characters of a line; launchers put a host's name before each
_BETWEEN = "between nodes"


def make_answer(
    nodes: Sequence[dict[str, Any]], between: Iterable[Finding], **more: Any
) -> dict[str, Any]:
    """Return the whole answer.

    nodes: {"node", "host", "checks": findings as JSON has them, ...} of each. between: what was
    found of all of them together.
    """
    together = [one._asdict() for one in between]
    states = [one["state"] for node in nodes for one in node["checks"]]
    states += [one["state"] for one in together]
    return {
        "ready": "FAILED" not in states,
        "failed": states.count("FAILED"),
        "warnings": states.count("warning"),
        "nodes": list(nodes),
        "checks": together,
        **more,
    }


def to_lines(answer: dict[str, Any]) -> list[str]:
    """Return the answer as short lines, which a launcher may mix with others."""
    text = base64.b64encode(zlib.compress(json.dumps(answer).encode())).decode()
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return [f"{_MARK} {number}/{len(pieces)} {piece}" for number, piece in enumerate(pieces, 1)]


def from_lines(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the answer in a launcher's output, None where it is not whole, and the other lines."""
    pieces: dict[int, str] = {}
    count, others = 0, []
    for line in text.splitlines():
        if match := _LINE.search(line):
            pieces[int(match[1])], count = match[3], int(match[2])
        else:
            others.append(line)
    if not count or len(pieces) != count:
        return None, others
    content = zlib.decompress(base64.b64decode("".join(pieces[n] for n in sorted(pieces))))
    return json.loads(content), others


def show(answer: dict[str, Any], console: Console) -> None:
    """Print a table of what was found, the same of several nodes in one row, and a verdict."""
    table = Table(show_lines=False)
    for name in ("check", "state", "where", "what was found, and what to do"):
        table.add_column(name, overflow="fold")
    for name, state, where, text in _rows(answer):
        color = _COLORS[state]
        table.add_row(escape(name), f"[{color}]{state}[/]", escape(where), escape(text))
    console.print(table)
    count = len(answer["nodes"])
    nodes = "this machine is" if count == 1 else f"{count} nodes are"
    if answer["ready"]:
        considered = f", with {answer['warnings']} to consider" if answer["warnings"] else ""
        console.print(f"{nodes} ready{considered}", highlight=False)
    else:
        console.print(f"{nodes} not ready: {answer['failed']} failed", highlight=False)


def _rows(answer: dict[str, Any]) -> list[tuple[str, State, str, str]]:
    """Return name, state, where and text of each row, in the order in which the checks were made.

    What is well is one row for each check.
    """
    names = labels([(node["node"], node["host"]) for node in answer["nodes"]])
    found: dict[str, list[tuple[str, Finding]]] = {}
    for label, node in zip(names, answer["nodes"], strict=True):
        for record in node["checks"]:
            finding = finding_of(record)
            found.setdefault(finding.name, []).append((label, finding))
    for record in answer["checks"]:
        finding = finding_of(record)
        found.setdefault(finding.name, []).append((_BETWEEN, finding))
    rows: list[tuple[str, State, str, str]] = []
    for name, findings in found.items():
        groups: dict[tuple[State, str], list[str]] = {}
        if worst(one.state for _, one in findings) == "ok":
            first = findings[0][1].text
            same = all(one.text == first for _, one in findings)
            where = list(dict.fromkeys(label for label, _ in findings))
            if len(where) == 1:  # one node may have said several things
                for _, one in findings:
                    groups.setdefault(("ok", one.text), []).extend(where)
            else:
                example = "" if same else f" (on {where[0]})"
                groups["ok", first + example] = where
        else:
            for label, one in findings:
                if one.state != "ok":
                    groups.setdefault((one.state, one.text), []).append(label)
        for (state, text), where in groups.items():
            rows.append((name, state, _some(where, len(names)), text))
    return rows


def _some(labels: Sequence[str], count: int) -> str:
    labels = list(dict.fromkeys(labels))
    if len(labels) == count and count > 2:
        return f"all {count} nodes"
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def labels(nodes: Sequence[tuple[int, str]]) -> list[str]:
    """Return a name for each node: its host's, with its number where several have the same. nodes:
    their numbers and their hosts."""
    hosts = [host for _, host in nodes]
    return [host if hosts.count(host) == 1 else f"{host} (node {number})" for number, host in nodes]
