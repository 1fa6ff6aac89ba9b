"""How the command lines that are modules of this package run: one typer command, and `model.entry` for its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from model.entry import run_entry


def run_command(function: Callable[..., Any]) -> None:
    """Run a typer command, and exit as every entry point does."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(function)
    run_entry(app)
