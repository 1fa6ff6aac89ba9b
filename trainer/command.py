"""How the command lines that are modules of this package run: one typer command, and `model.entry`
for its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from model.entry import run_entry
from trainer.resilience.leaving import leave

# In the environment: what the user typed for `python -m MODULE`, for help and usage errors.
PROGRAM = "ADDP_PROGRAM"


def run_command(function: Callable[..., Any]) -> None:
    """Run a typer command, and exit as every entry point does."""
    run_entry(_called(function))


def run_ranks(function: Callable[..., Any]) -> NoReturn:
    """The same for one that many ranks run: it exits without waiting for other ranks or its own
    threads."""
    leave(_called(function))


def _called(function: Callable[..., Any]) -> Callable[[], Any]:
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(function)
    return lambda: app(prog_name=os.environ.pop(PROGRAM, None))
