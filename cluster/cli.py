"""`addp`, the one command line for people. Launchers start the modules themselves.

Each command, or group of commands, is one file in `cluster/commands/`; this file puts them
together.
"""

from __future__ import annotations

import typer

from cluster.commands import (
    check,
    checkpoints,
    config,
    data,
    demo,
    doctor,
    launch,
    openmoji,
    parity,
    status,
    stop,
    tokenize,
    train,
    version,
    weights,
)
from cluster.commands.modules import PASS_ON, module_command
from model.entry import run_entry
from trainer.command import run_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pre-train ADDP: token shards, training, generation, evaluation. Start with `addp demo`.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 74 storage, 75 stopped and saved, 76 "
    "hung, 77 diverged, 78 configuration, 79 no valid checkpoint; of addp launch also 80 gave up, "
    "81 nodes are missing.",
)
app.callback()(version.options)


def _module(name: str, panel: str, summary: str) -> None:
    add = app.command(name, context_settings=PASS_ON, help=summary, rich_help_panel=panel)
    add(module_command(name))


_MAKE = "Make and look at data"
app.add_typer(tokenize.app, name="tokenize", rich_help_panel=_MAKE)
app.add_typer(data.app, name="data", rich_help_panel=_MAKE)
app.command(rich_help_panel=_MAKE)(openmoji.openmoji)

_TRAIN = "Train"
app.command(rich_help_panel=_TRAIN)(train.train)
app.command(rich_help_panel=_TRAIN)(config.config)
_module("plan", _TRAIN, "Say what a run will take: batch arithmetic, memory, days, checkpoints.")
app.command(rich_help_panel=_TRAIN)(check.check)
app.command(rich_help_panel=_TRAIN)(checkpoints.checkpoints)

_OPERATE = "Operate a run, on one machine or many"
app.command(rich_help_panel=_OPERATE)(doctor.doctor)
app.command(rich_help_panel=_OPERATE)(launch.launch)
app.command(rich_help_panel=_OPERATE)(status.status)
app.command(rich_help_panel=_OPERATE)(stop.stop)

_USE = "Use what was trained"
_module("generate", _USE, "Sample images from an ADDP network: a grid, a set, completions.")
_module("evaluate", _USE, "Measure checkpoints: FID, kNN, linear probe; --follow a run.")
_module("report", _USE, "Write one self-contained HTML page about a run, or several.")
app.command(rich_help_panel=_USE)(weights.export)
app.command("import", rich_help_panel=_USE)(weights.import_weights)

_TRY = "Try and prove"
app.command(rich_help_panel=_TRY)(demo.demo)
app.command(rich_help_panel=_TRY)(parity.parity)


def main() -> None:
    """Run the command line, and exit as every entry point does."""
    run_entry(lambda: run_app(app, "addp"))  # the same name however it was started


if __name__ == "__main__":
    main()
