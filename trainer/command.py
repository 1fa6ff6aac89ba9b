"""How the command lines that are modules of this package run: one typer command, and `model.entry`
for its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from model.entry import run_entry
from trainer.config.renamed import refuse_old_options
from trainer.resilience.leaving import leave

# In the environment: what the user typed for `python -m MODULE`, for help and usage errors.
PROGRAM = "ADDP_PROGRAM"


def run_command(function: Callable[..., Any]) -> None:
    """Run a typer command, and exit as every entry point does."""
    run_entry(_called(function))


def run_ranks(function: Callable[..., Any]) -> NoReturn:
    """Run a typer command as one of many ranks: it exits without waiting for other ranks, or for
    its own threads."""
    leave(_called(function))


def _called(function: Callable[..., Any]) -> Callable[[], Any]:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(function)
    return lambda: run_app(app, os.environ.pop(PROGRAM, None))


def run_app(app: typer.Typer, program: str | None) -> Any:
    """Run a command line on the arguments of this process. Raises RenamedOption for an old option.

    program: its name in help and usage errors; None for that of the module.
    """
    refuse_old_options(sys.argv[1:])
    return app(prog_name=program)
