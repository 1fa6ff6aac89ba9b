"""What a run left behind, and what was done to it since: metric lines, results, identities,
heartbeats."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.weights import run_folder
from trainer.run_folder import RUN

_RESULT = {"step": 4, "part": "knn", "weights": "raw", "figures": {"top1_k20": 0.5}, "pictures": {}}
_BOMB = "a: &a [1]\n" + "".join(
    f"{c}: &{c} [{', '.join(['*' + b] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)


def _lay(files: dict[str, str | bytes], run: str = "run") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / run / "checkpoints").mkdir(parents=True)
        for name, content in {"config.resolved.yaml": "objective: addp\n", **files}.items():
            path = folder / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def _report(name: str, files: dict[str, str | bytes], *says: str, run: str = "run") -> Case:
    """A report is made whatever is broken."""
    return Case(
        name, ("report", run, "--out", "out.html"), says=says, code=0, make=_lay(files, run)
    )


def _result(**changes: Any) -> dict[str, str | bytes]:
    return {"evaluation/step-00000004/knn.json": json.dumps({**_RESULT, **changes})}


def _fifos(folder: Path) -> None:
    _lay({})(folder)
    for name in ("metrics.jsonl", "exit.json", RUN, "incidents"):
        os.mkfifo(folder / "run" / name)


def _with_run(name: str, content: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        run_folder(folder)
        (folder / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / name).write_bytes(
            content.encode() if isinstance(content, str) else content
        )

    return make


CASES = [
    _report("a run named like a pattern", {}, run="a$x^$"),
    _report("a run named like HTML", {}, run="<script>alert(1)<"),
    _report(
        "metric lines that are no records",
        {"metrics.jsonl": '[1]\nx\n{"step": -1}\n{"step": "4", "loss": 1}\n'},
    ),
    _report("metric lines of nothing but NaN", {"metrics.jsonl": '{"step": 1, "loss": NaN}\n' * 2}),
    _report(
        "a metric line of a huge number",
        {"metrics.jsonl": '{"step": 1, "loss": ' + "9" * 5000 + "}\n"},
    ),
    _report("a metric line that nests", {"metrics.jsonl": "[" * 100_000}),
    _report("an alias bomb as a resolved configuration", {"config.resolved.yaml": _BOMB}),
    _report(
        "a tag in a resolved configuration",
        {"config.resolved.yaml": "a: !!python/object:os.system {}\n"},
    ),
    _report(
        "binary records",
        {n: bytes(range(256)) for n in ("metrics.jsonl", "incidents.jsonl", "exit.json")},
    ),
    _report(
        "incidents that hold HTML",
        {"incidents.jsonl": json.dumps({"event": "<script>", "reason": "<img>"})},
    ),
    _report("a result of infinite metrics", _result(figures={"fid": float("inf"), "is": 1e300})),
    _report(
        "a result whose images lie elsewhere", _result(pictures={"": "../../../../outside/x.png"})
    ),
    _report("a result of a benchmark named like a path", _result(part="../../x")),
    _report("a result of an absurd step", _result(step=10**40)),
    _report(
        "an end at an absurd time", {"exit.json": '{"code": 75, "reason": "x", "time": 1e300}'}
    ),
    _report(
        "a heartbeat at an absurd time",
        {"heartbeats/rank-00000.json": '{"time": -1e300, "section": "step"}'},
    ),
    Case(
        "FIFOs among a run's records", ("report", "run", "--out", "out.html"), code=0, make=_fifos
    ),
    Case(
        "a run folder of nothing",
        ("report", "nothing", "--out", "out.html"),
        code=78,
        says=("nothing",),
    ),
    Case(
        "an alias bomb in a run that is generated from",
        ("generate", "run"),
        code=78,
        says=("config.resolved.yaml",),
        make=_with_run("config.resolved.yaml", _BOMB),
    ),
    Case(
        "a resolved configuration that is binary",
        ("generate", "run"),
        code=78,
        says=("config.resolved.yaml",),
        make=_with_run("config.resolved.yaml", b"\xff\xfe\x00"),
    ),
    Case(
        "a resolved configuration of gigabytes",
        ("generate", "run"),
        code=78,
        says=("config.resolved.yaml",),
        make=_with_run("config.resolved.yaml", "# " + "x" * (1 << 26)),
    ),
    Case(
        "a tokenizer that is missing", ("generate", "run"), says=("tokenizer.pth",), make=run_folder
    ),
    Case(
        "a result that is no JSON",
        ("evaluate", "run", "--suite", "samples"),
        says=("samples.json",),
        make=_with_run("evaluation/step-00000004/samples.json", "{"),
    ),
    Case(
        "a result that nests",
        ("evaluate", "run", "--suite", "samples"),
        says=("samples.json",),
        make=_with_run("evaluation/step-00000004/samples.json", "[" * 100_000),
    ),
]
