from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from click.testing import CliRunner
from typer.main import get_command

from cluster import cli
from model.shipped import CLASSES
from tests.cluster.calling import MODULES, addp, commands, typed

ROOT = Path(__file__).parents[2]
BASE = ROOT / "trainer/recipes/base.yaml"


def test_help_names_every_command() -> None:
    done = addp("--help")
    assert done.code == 0 and "Exit codes: 0 done" in done.stdout
    for name in [*MODULES, "train", "check", "demo", "config", "openmoji", "parity"]:
        assert name in done.stdout


@pytest.mark.parametrize(
    "command",
    ["check", "export", "import", "parity", "train", "tokenize run", "data order", "checkpoints"],
)
def test_each_command_has_help(command: str) -> None:
    done = addp(*command.split(), "--help")
    assert done.code == 0 and f"Usage: addp {command} " in done.stdout and len(done.stdout) > 300


def test_summaries_begin_the_help_of_the_commands() -> None:
    """`addp --help` shows them without the commands. Those of modules are worded for the list."""
    listed = {n: e.summary for n, e in cli.COMMANDS.items() if n not in MODULES}
    for name, summary in listed.items():
        begins = commands()[(name,)].help.split("\n\n")[0]
        assert " ".join(begins.split()) == summary


def _typed(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(_typed, get_args(annotation)))


@pytest.mark.parametrize(
    ("words", "command"),
    [(words, command) for words, command in commands().items() if not hasattr(command, "commands")],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_number_of_a_command_has_a_range(words: tuple[str, ...], command: Any) -> None:
    """So that none loops for ever, takes all memory or is NaN; the command-line library then
    refuses it by name."""
    for option, hint in get_type_hints(command.callback, include_extras=True).items():
        base, *settings = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if {int, float} & _typed(base) and bool not in _typed(base):
            (found,) = settings
            assert found.hidden or (found.min is not None and found.max is not None), (
                f"{words}: {option}"
            )


def test_modules_are_named_as_they_were_typed() -> None:
    done = typed("plan", "--help")
    assert done.code == 0 and len(done.stdout) > 300, done.stderr
    assert "Usage: addp plan " in done.stdout and "python -m" not in done.stdout.split("\n\n")[0]


def test_version_and_completion() -> None:
    done = addp("--version")
    assert done.code == 0 and [line.split()[0] for line in done.stdout.splitlines()] == [
        "addp",
        "torch",
        "deepspeed",
    ]
    completion = {"_ADDP_COMPLETE": "complete_bash", "COMP_WORDS": "addp che", "COMP_CWORD": "1"}
    found = CliRunner().invoke(get_command(cli.app), [], prog_name="addp", env=completion)
    assert found.output.split() == ["check", "checkpoints"]


@pytest.mark.parametrize(
    "arguments",
    [
        (BASE, "batch.micro=32"),
        ("batch.micro=32", BASE),
        ("batch.micro=32", "addp.sizes.size=base", "run=a=b"),
    ],
)
def test_config(arguments: tuple[object, ...]) -> None:
    done = addp("config", *arguments)
    found = yaml.safe_load(done.stdout)
    assert done.code == 0 and found["batch"]["micro"] == 32 and found["addp"]["sizes"]["dim"] == 768


def test_a_file_may_have_an_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "lr=3.yaml"
    file.write_text("seed: 9\n")
    assert yaml.safe_load(addp("config", file, "batch.micro=32").stdout)["seed"] == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((BASE, "batch.mikro=32"), "nearest known one is batch.micro"),
        (
            ("batch.micro",),
            "'batch.micro' is neither a run file (there is no such file) nor an override",
        ),
        ((BASE, BASE), "one run file only"),
    ],
)
def test_a_wrong_configuration(arguments: tuple[object, ...], words: str) -> None:
    done = addp("config", *arguments)
    assert done.code == 78 and words in done.stderr and not done.stdout


@pytest.mark.parametrize("command", [("config", "base"), ("config", "--config", "base")])
def test_a_recipe_is_known_by_its_name(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = addp(*command, "run=x").stdout
    assert resolved == addp("config", BASE, "run=x").stdout
    Path("base").write_text("seed: 9\n")  # a file of that name wins
    assert yaml.safe_load(addp(*command).stdout)["seed"] == 9


def test_every_command_that_takes_a_run_file_takes_a_recipe(tmp_path: Path) -> None:
    assert "objective   addp" in addp("plan", "large", "--gpus", 64).stdout
    done = addp("check", "mage-base", "--gpus", 32, f"run={tmp_path / 'run'}")
    assert "batch          ok" in done.stdout
    done = addp("train", f"run={tmp_path}")
    assert done.code == 2 and "linear-base" in done.stderr
    for words in (("bse",), ("--config", "bse")):
        done = addp("config", *words)
        assert done.code == 78 and "base" in done.stderr and "mage-large" in done.stderr


def test_check_says_what_is_missing(tmp_path: Path) -> None:
    """tests/trainer/preflight/test_checks.py has each check."""
    arguments = ("check", "--gpus", 24, BASE, f"run={tmp_path / 'run'}")
    done = addp(*arguments)
    assert (
        done.code == 78
        and "batch          FAILED" in done.stdout
        and "1, 2, 4, 8, 16, 32 ranks" in done.stdout
    )
    assert "not ready: 3 failed" in done.stdout
    found = json.loads(addp(*arguments, "--json").stdout)
    assert not found["ready"] and [
        c["name"] for c in found["checks"] if c["state"] == "FAILED"
    ] == ["batch", "weights", "data"]


@pytest.mark.parametrize("command", ["generate", "evaluate", "report", "export"])
def test_a_run_that_is_not_there(command: str, tmp_path: Path) -> None:
    done = addp(command, tmp_path / "none", *([tmp_path / "out"] if command == "export" else []))
    assert done.code == 78 and "is no run folder" in done.stderr and "Traceback" not in done.stderr


def test_pictures_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, by the network that ships: a grid, a set, and an edit of one of its
    pictures."""
    monkeypatch.chdir(tmp_path)
    few = ("--steps", 2, "--seed", 3)
    done = addp("generate", "--count", 4, *few)
    assert (done.code, done.stdout) == (0, "samples/grid.png\n"), done.stderr
    assert done.stderr.startswith("without RUN, this is the network that ships with addp: emoji")
    assert "32 x 32 pixels, with --class-guidance 2 --top-p 0.6, and of the classes" in done.stderr
    grid = Path("samples/grid.png").read_bytes()
    assert addp("generate", "--count", 4, *few, "--sampler", "clear").code == 0
    assert Path("samples/grid.png").read_bytes() == grid
    done = addp("generate", "--count", 4, *few, "--top-p", 1)
    assert "--class-guidance 2 --top-p 1, " in done.stderr
    stated = json.loads(Path("samples/grid.json").read_text())
    assert (stated["class_guidance"], stated["top_p"]) == (2, 1)
    assert stated["classes"] == list(CLASSES)
    done = addp("generate", "--count", 2, "--batch", 2, *few, "--into", "set")
    assert (done.code, done.stdout) == (0, "set\n")
    one, other = (Path("set") / f"00000{number}.png" for number in range(2))
    done = addp("generate", "--between", one, other, "--frames", 1, "--out", "way.png", *few)
    assert done.code == 0 and Path("way.png").exists(), done.stderr
    for option in (("--checkpoint", 8), ("--weights", "ema")):
        refused = addp("generate", *option)
        assert refused.code == 78 and "holds one network and no checkpoints" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "preview", "NONE", "--tokenizer", "none", "--page"),
        ("tokenize", "inspect", "NONE", "--page"),
        ("export", "NONE", "--format", "timm"),
        ("generate", "NONE", "--out"),
        ("report", "NONE", "--out"),
    ],
)
def test_outputs_are_checked_before_the_work(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Even before the data set or run is looked for: there is none."""
    out = tmp_path / "new" / "out.xyz"
    done = addp(*arguments, out)
    assert done.code == 78 and f"{out} cannot be written: its name must end in ." in done.stderr
    assert not list(tmp_path.iterdir())
