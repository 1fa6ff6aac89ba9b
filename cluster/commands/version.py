"""The option `addp --version`, which prints the versions of what matters."""

from __future__ import annotations

from typing import Annotated

import typer


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    for package in ("addp", "torch", "deepspeed"):
        try:
            print(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            print(package, "not installed")
    raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_versions, help="print versions and exit"
        ),
    ] = False,
) -> None:
    """The options that stand before a command."""
