"""`addp train`: start a training on this machine, or on several, and see it through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.config.arguments import configured
from trainer.config.options import ConfigFile, RunArguments, processes_option


def train(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    *,
    processes: Annotated[
        int | None,
        processes_option("ranks on this machine (1 if not given); with --hostfile: on each host"),
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="several machines: a line `HOST slots=N` for each; see docs/several-machines.md"
        ),
    ] = None,
    master_addr: Annotated[
        str | None,
        typer.Option(help="with --hostfile: the first host's address; asked of it if not given"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="train nothing; check each host by a rank, print a table"),
    ] = False,
) -> None:
    """Train on this machine, or on those of a hostfile, under the DeepSpeed launcher."""
    from cluster.launch import launch
    from cluster.launch.hosts import choose_hosts, this_machine
    from data_pipeline.storage.output import check_output
    from trainer.config.reading import load_config
    from trainer.distributed.world import refuse_tasks
    from trainer.pretrain import check_ranks
    from trainer.recipes import recipe_names

    refuse_tasks("addp train")
    file, overrides = configured(config, arguments)
    if file is None:
        raise typer.BadParameter(
            "name a run file, or a recipe: " + ", ".join(recipe_names()), param_hint="FILE"
        )
    settings = load_config(file, overrides)
    words = ["--config", str(file.absolute()), *overrides]
    if hostfile is None:
        hosts = this_machine(processes or 1)
    else:
        hosts = choose_hosts(hostfile, 1 if check else processes, master_addr)
    if check:
        launch.check_hosts(words, hosts)
        return
    check_output(settings.run)
    check_ranks(settings.expect_ranks, hosts.ranks)
    if hostfile is not None and settings.expect_ranks is None:
        # The ranks then refuse to train where the launcher starts another number of them.
        words.append(f"expect_ranks={hosts.ranks}")
    launch.train(settings.run, words, hosts)
