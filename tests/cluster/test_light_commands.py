"""No help, and no refusal of what was typed, waits for libraries that compute, or that reach
networks. How long each takes, `benchmarks/startup.py` measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.calling import MODULES, commands

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "deepspeed", "numpy", "PIL", "boto3", "botocore", "matplotlib", "ray", "sklearn"}

# A process that has loaded the command-line library alone. It forks for each line of words.
_FORKS = """
import contextlib, io, json, os, sys
import typer.rich_utils
from cluster import cli

for line in sys.stdin:
    words = json.loads(line)
    reader, writer = os.pipe()
    if os.fork() == 0:
        sys.argv, out, os._exit = ["addp", *words], io.StringIO(), sys.exit  # some leave by it
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                cli.main()
        except SystemExit as end:
            code = end.code
        modules = sorted({name.partition(".")[0] for name in sys.modules})
        with os.fdopen(writer, "w") as pipe:
            json.dump({"code": code, "text": out.getvalue(), "modules": modules}, pipe)
        os.kill(os.getpid(), 9)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        print(json.dumps(json.load(pipe)), flush=True)
    os.wait()
"""


def called(lines: list[list[str]]) -> list[dict[str, Any]]:
    """What came of each command line: its exit code, its text, and the packages it loaded."""
    asked = "".join(json.dumps(words) + "\n" for words in lines)
    command = [sys.executable, "-c", _FORKS]
    done = subprocess.run(
        command, input=asked, check=True, cwd=ROOT, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_help_loads_the_command_line_alone() -> None:
    lines = [[*words, "--help"] for words in commands()]
    assert len(lines) > len(MODULES) + 20
    for words, answer in zip(lines, called(lines), strict=True):
        assert answer["code"] == 0 and "Usage: addp" in answer["text"], (words, answer["text"])
        assert not (HEAVY | {"yaml"}) & set(answer["modules"]), words


def test_refusals_load_the_command_line_alone(tmp_path: Path) -> None:
    lines = [
        [],
        ["nonsense"],
        ["tokenize", "nonsense"],
        ["check"],
        ["launch", "--nonsense"],
        ["generate", "--count"],
        ["evaluate", "--suite"],
        ["status", str(tmp_path / "none")],
        ["stop", str(tmp_path / "none")],
        ["launch", "nonsense"],
        ["config", "nonsense"],
    ]
    for words, answer in zip(lines, called(lines), strict=True):
        assert answer["code"] in (2, 78), (words, answer)
        assert not HEAVY & set(answer["modules"]), words


def test_a_rank_shows_its_help_without_torch() -> None:
    code = (
        "import sys\n"
        "from trainer.pretrain import main\n"
        "try: main(['--help'])\n"
        f"finally: print(*{HEAVY!r} & {{*sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "usage:" in done.stdout and not done.stdout.splitlines()[-1].strip()
