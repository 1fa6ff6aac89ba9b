"""The doctor's answer on its way through a launcher, and on the console."""

from __future__ import annotations

import io
import json

from rich.console import Console

from trainer.preflight.doctor.reporting import from_lines, labels, make_answer, show, to_lines
from trainer.preflight.finding import Finding

OK = Finding("memory", "ok", "8.0 GiB of 9.0 GiB available")
BAD = Finding("disk [space]", "FAILED", "[red]full", "make room")


def answer() -> dict[str, object]:
    nodes = [
        {"node": n, "host": host, "checks": [one._asdict() for one in (OK, BAD)[: 1 + (n == 1)]]}
        for n, host in enumerate(["a", "b", "b"])
    ]
    return make_answer(nodes, [Finding("clocks", "warning", "3 s apart", "synchronise them")])


def test_what_it_counts() -> None:
    made = answer()
    assert not made["ready"] and made["failed"] == 1 and made["warnings"] == 1
    assert make_answer([{"node": 0, "host": "a", "checks": [OK._asdict()]}], [])["ready"]


def test_lines_that_a_launcher_mixes_with_others() -> None:
    made = json.loads(json.dumps({**answer(), "padding": [f"{n:x}" * 50 for n in range(999)]}))
    lines = to_lines(made)
    assert len(lines) > 1 and max(map(len, lines)) < 2100
    mixed = [f"node1: {line}" for line in reversed(lines)]
    text = "\n".join(["node2: hello", *mixed, "node1: good-bye"])
    found, others = from_lines(text)
    assert found == made and others == ["node2: hello", "node1: good-bye"]
    assert from_lines("\n".join(mixed[1:]))[0] is None and from_lines("nothing") == (
        None,
        ["nothing"],
    )


def test_the_table() -> None:
    out = io.StringIO()
    show(answer(), Console(file=out, width=140))
    said = out.getvalue()
    assert "all 3 nodes" in said and "8.0 GiB of 9.0 GiB available" in said
    assert "disk [space]" in said and "[red]full; make room" in said and "b (node 1)" in said
    assert "between nodes" in said and "3 nodes are not ready: 1 failed" in said
    out = io.StringIO()
    show(make_answer([{"node": 0, "host": "a", "checks": [OK._asdict()]}], []), Console(file=out))
    assert "this machine is ready\n" in out.getvalue()


def test_names_of_nodes() -> None:
    assert labels([(0, "a"), (1, "b"), (3, "b")]) == ["a", "b (node 1)", "b (node 3)"]
