"""`addp train`: start a training on this machine, and see it through."""

from __future__ import annotations

from typing import Annotated

import typer

from trainer.config.options import ConfigFile, RunArguments, processes_option


def train(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    *,
    processes: Annotated[int, processes_option("ranks on this machine")] = 1,
) -> None:
    """Train on this machine, under the DeepSpeed launcher.

    `addp launch` trains on several machines, and goes on by itself after a fault.
    """
    from cluster.launch import launch
    from cluster.launch.hosts import this_machine
    from data_pipeline.storage.output import check_output
    from trainer.config.arguments import configured
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
    check_output(settings.run)
    check_ranks(settings.expect_ranks, processes)
    words = ["--config", str(file.absolute()), *overrides]
    launch.train(settings.run, words, this_machine(processes))
