"""`addp`, the one command line for people. Launchers call the modules themselves."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands import check, checkpoints, data, parity, tokenize, weights
from model.entry import run_entry
from trainer.command import PROGRAM, run_app
from trainer.config.arguments import configured
from trainer.config.options import ConfigFile, RunArguments, processes_option

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pre-train ADDP: token shards, training, generation, evaluation. Start with `addp demo`.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 74 storage, 75 stopped and saved, 76 "
    "hung, 77 diverged, 78 configuration, 79 no valid checkpoint.",
)

_DATA, _TRAIN, _USE, _TRY = (
    "Make and look at data",
    "Train",
    "Use what was trained",
    "Try and prove",
)

app.add_typer(tokenize.app, name="tokenize", rich_help_panel=_DATA)
app.add_typer(data.app, name="data", rich_help_panel=_DATA)
app.command(rich_help_panel=_TRAIN)(check.check)
app.command(rich_help_panel=_TRAIN)(checkpoints.checkpoints)
app.command(rich_help_panel=_USE)(weights.export)
app.command("import", rich_help_panel=_USE)(weights.import_weights)
app.command(rich_help_panel=_TRY)(parity.parity)

# Commands that are modules of their own; `addp NAME --help` is the module's help.
MODULES = {
    "generate": (
        "trainer.evaluation.generate",
        _USE,
        "Sample images from an ADDP network: a grid, a set, completions.",
    ),
    "evaluate": (
        "trainer.evaluation.evaluate",
        _USE,
        "Measure checkpoints: FID, kNN, linear probe; --follow a run.",
    ),
    "plan": (
        "trainer.preflight.planning",
        _TRAIN,
        "Say what a run will take: batch arithmetic, memory, days, checkpoints.",
    ),
    "report": (
        "trainer.evaluation.report",
        _USE,
        "Write one self-contained HTML page about a run, or several.",
    ),
}
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _add_module(name: str, module: str, panel: str, summary: str) -> None:
    @app.command(name, context_settings=_PASS_ON, help=summary, rich_help_panel=panel)
    def run(context: typer.Context) -> None:
        # In place of this process: a signal then reaches the module, and one process says how it
        # ended.
        os.environ[PROGRAM] = f"addp {name}"
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])


for _name, _described in MODULES.items():
    _add_module(_name, *_described)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    for package in ("addp", "torch", "deepspeed"):
        try:
            print(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            print(package, "not installed")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="print versions and exit"
        ),
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=_TRAIN)
def train(
    arguments: RunArguments = None,
    config: ConfigFile = None,
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
    """Train under the deepspeed launcher, on this machine or on those of a hostfile."""
    from cluster.launch.hosts import choose_hosts
    from cluster.launch.launch import check_hosts, free_port
    from cluster.launch.launch import train as launch
    from data_pipeline.storage.output import check_output
    from trainer.config.reading import load_config
    from trainer.pretrain import check_ranks

    file, overrides = configured(config, arguments)
    if file is None:
        raise typer.BadParameter("name a run file, as in configs/", param_hint="FILE")
    found = load_config(file, overrides)
    words = ["--config", str(file.absolute()), *overrides]
    hosts = (
        choose_hosts(hostfile, 1 if check else processes, free_port(), master_addr)
        if hostfile
        else None
    )
    if not check:
        check_output(found.run)
        check_ranks(found.expect_ranks, hosts.ranks if hosts else processes or 1)
    if hosts:
        hosts.check()
    if check:
        check_hosts(processes or 1, words, hosts)
        return
    if hosts and found.expect_ranks is None:
        words.append(f"expect_ranks={hosts.ranks}")
    launch(found.run, processes or 1, words, hosts)


@app.command(rich_help_panel=_DATA)
def openmoji(
    out: Annotated[Path, typer.Argument(help="folder to make, with one folder a class")],
    size: Annotated[int, typer.Option(min=1, max=4096, help="side of the images in pixels")] = 64,
) -> None:
    """Render the OpenMoji set (CC BY-SA 4.0) into class folders: real images without a download."""
    from data_pipeline.images.openmoji import render
    from data_pipeline.storage.output import check_output

    check_output(out)
    print(f"{out}: {render(out, size)} images")


@app.command("config", rich_help_panel=_TRAIN)
def show_config(
    arguments: RunArguments = None,
    config: ConfigFile = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="every key with its default and meaning")
    ] = False,
) -> None:
    """Show the resolved configuration of a run file, or every key with its meaning."""
    import yaml

    from trainer.config.defaults import documented_defaults
    from trainer.config.reading import load_config

    if defaults:
        print(documented_defaults(), end="")
        return
    found = load_config(*configured(config, arguments))
    print(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False), end="")


@app.command(rich_help_panel=_TRY)
def demo(
    images: Annotated[
        Path | None, typer.Option(help="your own images in class folders; OpenMoji if not given")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the demo's runs and its report")] = Path(
        "runs/demo"
    ),
    processes: Annotated[int, processes_option("ranks (processes)")] = 2,
    scale: Annotated[
        float,
        typer.Option(min=0.001, max=1000, help="length of the trainings; 1: as in the README"),
    ] = 1.0,
) -> None:
    """Go the whole road on real images: tokenizer, token shards, predictor, ADDP, samples, probes,
    report."""
    from cluster.demo.run import run_demo

    run_demo(images, out, processes, scale)


def main() -> None:
    run_entry(lambda: run_app(app, "addp"))  # however it was started


if __name__ == "__main__":
    main()
