"""`addp`, the one command line for people. Launchers start the modules themselves.

Each command, or group of commands, is one file in `cluster/commands/`, or a module of the trainer;
this file lists them. A command is imported when it is called.
"""

from __future__ import annotations

import os

import typer

from cluster.commands import version
from cluster.commands.loading import Entry, lazy_group
from model.entry import run_entry
from trainer.command import run_app

_MAKE = "Make and look at data"
_TRAIN = "Train"
_OPERATE = "Operate a run, on one machine or many"
_USE = "Use what was trained"
_TRY = "Try and prove"

COMMANDS = {
    "openmoji": Entry(
        "cluster.commands.openmoji:openmoji",
        _MAKE,
        "Render the OpenMoji set (CC BY-SA 4.0) into class folders: real images without a "
        "download.",
    ),
    "scenes": Entry(
        "cluster.commands.scenes:scenes",
        _MAKE,
        "Compose scenes of OpenMoji (CC BY-SA 4.0) with masks and boxes, in ADE20k's and COCO's "
        "layouts.",
    ),
    "tokenize": Entry(
        "cluster.commands.tokenize:app",
        _MAKE,
        "Images -> token shards: `plan` freezes the work, `run` does it on many machines, "
        "`finalize` ends it.",
    ),
    "data": Entry(
        "cluster.commands.data:app",
        _MAKE,
        "Look at a token data set as a run reads it: its speed, the contents of a batch, and "
        "where a sample lies; and see how other libraries read it.",
    ),
    "train": Entry(
        "cluster.commands.train:train",
        _TRAIN,
        "Train on this machine, under the DeepSpeed launcher.",
    ),
    "config": Entry(
        "cluster.commands.config:config",
        _TRAIN,
        "Show the resolved configuration of a run file, or every key with its meaning.",
    ),
    "plan": Entry(
        "trainer.preflight.planning",
        _TRAIN,
        "Say what a run will take: batch arithmetic, memory, days, checkpoints.",
    ),
    "check": Entry(
        "cluster.commands.check:check", _TRAIN, "Check a run before it waits in a queue."
    ),
    "checkpoints": Entry(
        "cluster.commands.checkpoints:checkpoints",
        _TRAIN,
        "List, verify or prune checkpoints; `addp export` takes a network out of one.",
    ),
    "doctor": Entry(
        "cluster.commands.doctor:doctor",
        _OPERATE,
        "Find out whether a run would train here, before it starts.",
    ),
    "launch": Entry(
        "cluster.commands.launch:launch",
        _OPERATE,
        "Show how a run will be started, start it, and see it through faults to its end.",
    ),
    "status": Entry(
        "cluster.commands.status:status",
        _OPERATE,
        "Say how a run is doing: state, step, loss, speed, checkpoints, ETTR, incidents, ranks.",
    ),
    "stop": Entry(
        "cluster.commands.stop:stop",
        _OPERATE,
        "Have a run save and stop, from anywhere that sees its folder or its store.",
    ),
    "generate": Entry(
        "trainer.evaluation.generate",
        _USE,
        "Sample images from an ADDP network: a grid, a set, edits of given images.",
    ),
    "evaluate": Entry(
        "trainer.evaluation.evaluate",
        _USE,
        "Measure checkpoints: FID, kNN, linear probe; --follow a run.",
    ),
    "report": Entry(
        "trainer.evaluation.report",
        _USE,
        "Write one self-contained HTML page about a run, or several.",
    ),
    "export": Entry(
        "cluster.commands.weights:export", _USE, "Write a trained network for other programs."
    ),
    "import": Entry(
        "cluster.commands.weights:import_weights",
        _USE,
        "Turn official weights into files that describe themselves, each network its own; no code "
        "in them is run.",
    ),
    "demo": Entry(
        "cluster.commands.demo:demo",
        _TRY,
        "Go the whole road on real images, from a tokenizer to a report.",
    ),
    "parity": Entry(
        "cluster.commands.parity:parity",
        _TRY,
        "Reproduce what the reference computed, by the contents of FOLDER.",
    ),
}

app = typer.Typer(
    cls=lazy_group(COMMANDS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pre-train ADDP: token shards, training, generation, evaluation. Start with "
    "`addp generate` and `addp demo`.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 74 storage, 75 stopped and saved, 76 "
    "hung, 77 diverged, 78 configuration, 79 no valid checkpoint; of addp launch also 80 gave up, "
    "81 nodes are missing.",
)
app.callback()(version.options)


def main() -> None:
    """Run the command line, and exit as every entry point does."""
    # Else Pydantic reads the metadata of every installed package, to find plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    run_entry(lambda: run_app(app, "addp"))  # the same name however it was started


if __name__ == "__main__":
    main()
