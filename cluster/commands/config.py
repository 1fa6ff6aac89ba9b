"""`addp config`: what a run file means, with every key."""

from __future__ import annotations

from typing import Annotated

import typer

from trainer.config.options import ConfigFile, RunArguments


def config(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="every key with its default and meaning")
    ] = False,
) -> None:
    """Show the resolved configuration of a run file, or every key with its meaning."""
    import yaml

    from trainer.config.arguments import configured
    from trainer.config.defaults import documented_defaults
    from trainer.config.reading import load_config

    if defaults:
        print(documented_defaults(), end="")
        return
    resolved = load_config(*configured(config, arguments))
    print(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), end="")
