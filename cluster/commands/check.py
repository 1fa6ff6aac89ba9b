"""`addp check`: what would stop a run, before it waits in a queue."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from model.errors import ConfigError
from trainer.config.options import AsJson, ConfigFile, RunArguments, gpus_option

_COLORS = {"ok": "green", "warning": "yellow", "FAILED": "bold red"}


def check(
    gpus: Annotated[int, gpus_option("ranks that the run will have, over all machines")],
    arguments: RunArguments = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check a run before it waits in a queue.

    Looks at the batch, the weights, the data, the cache, the disk and the store, and says what a
    resume would do.

    Needs no GPU and starts nothing; run it where the run folder and the data can be seen, as on a
    login node. Large networks are checked by their headers. Exits with 78 where a line says FAILED;
    warnings do not count.
    """
    from rich.console import Console
    from rich.markup import escape

    from trainer.config.arguments import configured
    from trainer.preflight.checks import check_run

    file, overrides = configured(config, arguments)
    console = Console(soft_wrap=True, highlight=False)
    items = []
    for item in check_run(file, overrides, gpus):
        items.append(item)
        if not as_json:
            color = _COLORS[item.state]
            console.print(f"{item.name:14s} [{color}]{item.state:8s}[/] {escape(item.text)}")
    failed, warnings = (
        sum(item.state == state for item in items) for state in ("FAILED", "warning")
    )
    if as_json:
        print(
            json.dumps(
                {"ready": not failed, "checks": [item._asdict() for item in items]}, indent=1
            )
        )
    elif not failed:
        print(f"ready for {gpus} GPUs" + (f", with {warnings} to consider" if warnings else ""))
    if failed:
        if not as_json:
            print(f"not ready: {failed} failed")
        raise typer.Exit(ConfigError.exit_code)
