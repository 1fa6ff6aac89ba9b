"""How every command line of this package ends: a user's mistake is one paragraph on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from model.errors import ADDPError

PROGRAM = "ADDP_PROGRAM"  # in the environment: what the user typed for `python -m MODULE`, for help and usage errors


def run_command(function: Callable[..., Any]) -> None:
    """Run a typer command and exit with the error's own code where a user's mistake is found."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(function)
    try:
        app(prog_name=os.environ.pop(PROGRAM, None))
    except ADDPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
