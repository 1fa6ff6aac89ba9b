"""`addp ...` as it is typed, in this process where that shows the same: a start of the real one
takes seconds."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest import mock

import typer

from cluster import cli
from cluster.commands.loading import LazyCommand
from tests.warm import warm_python
from trainer.command import run_command

# The commands that are command lines of their own.
MODULES = {name: e.import_path for name, e in cli.COMMANDS.items() if ":" not in e.import_path}


def commands() -> dict[tuple[str, ...], Any]:
    """All commands of `addp`, by their words, as the command-line library has them."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, own in getattr(command, "commands", {}).items():  # of a group
            yield from below(_real(own), (*words, name))

    return dict(below(typer.main.get_command(cli.app), ()))


def _real(command: Any) -> Any:
    if not isinstance(command, LazyCommand):
        return command
    if command.name not in MODULES:
        return command.load()
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(MODULES[command.name]).main)
    return typer.main.get_command(app)


class Called(NamedTuple):
    code: int
    stdout: str
    stderr: str


def addp(*arguments: object) -> Called:
    """A command that is a module of its own does what its own process would do."""
    name = str(arguments[0])
    if name not in MODULES:
        return _here(cli.main, "addp", *arguments)
    module = importlib.import_module(MODULES[name])
    return _here(lambda: run_command(module.main), name, *arguments[1:])


def _here(main: Callable[[], object], *command: object) -> Called:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [*map(str, command)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Called(code, out.getvalue(), err.getvalue())


def typed(*arguments: object) -> Called:
    """In a process of its own, with all that it starts."""
    command = [warm_python(), "-m", "cluster.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Called(done.returncode, done.stdout, done.stderr)
