"""Commands that are command lines of their own: `addp NAME` does what `python -m MODULE` does."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from trainer.command import PROGRAM

# `addp NAME --help` is the help of the module, which gets all words as they are.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def module_command(module: str, name: str) -> Callable[[typer.Context], None]:
    """Return a command that runs the module. name: of the command."""

    def run(context: typer.Context) -> None:
        become(module, context.args, f"addp {name}")

    return run


def become(module: str, arguments: list[str], program: str) -> NoReturn:
    """Run a module that is a command line of its own, as `python -m MODULE` would: it ends this
    process. Another process would start Python and load the command-line library a second time.

    program: what the user typed, for the module's help and messages.
    """
    os.environ[PROGRAM] = program
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise AssertionError(f"{module} does not end the process")
