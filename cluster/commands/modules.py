"""The commands that are modules of their own: `addp NAME` becomes `python -m MODULE`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from trainer.command import PROGRAM

MODULES = {
    "plan": "trainer.preflight.planning",
    "generate": "trainer.evaluation.generate",
    "evaluate": "trainer.evaluation.evaluate",
    "report": "trainer.evaluation.report",
}
# `addp NAME --help` is the help of the module, which gets all words as they are.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def module_command(name: str) -> Callable[[typer.Context], None]:
    """Return a command that runs the module of this name."""

    def run(context: typer.Context) -> None:
        become(MODULES[name], context.args, f"addp {name}")

    return run


def become(module: str, arguments: list[str], program: str) -> NoReturn:
    """Run a module in place of this process.

    A signal then reaches the module itself, and one process says how it ended.

    program: what the user typed, for the module's help and messages.
    """
    os.environ[PROGRAM] = program
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
