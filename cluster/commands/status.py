"""`addp status`: how a run is doing, once or again and again."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConfigError
from trainer.config.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.status.read import RunReader
    from cluster.status.snapshot import Snapshot

_PAUSE, _STORE_PAUSE = 2.0, 15.0  # seconds between two looks
_PATIENCE = 5.0  # seconds in which a store may say what it has, where we look once
_SVG_WIDTH = 110


def status(
    run: Annotated[
        str, typer.Argument(help="run folder, or s3://bucket/prefix that a run uploads to")
    ],
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="look again and again, until the run is done")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=86_400, help="watch: seconds between two looks; 2, and 15 for a store"
        ),
    ] = None,
    as_json: AsJson = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="print metrics as Prometheus text")
    ] = False,
    textfile: Annotated[
        Path | None,
        typer.Option(help="replace this file, for node_exporter's textfile collector (NAME.prom)"),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="draw what would be printed into this picture")
    ] = None,
) -> None:
    """Say how a run is doing: state, step, loss, speed, checkpoints, ETTR, incidents, ranks.

    Reads the run folder, or what the store of a run has: there, as of the newest upload. It changes
    nothing, needs no GPU, and exits with 0 whatever the state of the run is.
    """
    from cluster.status.read import open_run

    if sum((as_json, prometheus, textfile is not None, svg is not None)) > 1:
        raise typer.BadParameter("take one of --json, --prometheus, --textfile and --svg")
    if watch and (prometheus or svg is not None):
        raise typer.BadParameter("goes with the view, --json and --textfile", param_hint="--watch")
    if interval is not None and not watch:
        raise typer.BadParameter("goes with --watch", param_hint="--interval")
    reader = open_run(run)
    if watch:
        pause = interval or (_PAUSE if reader.folder else _STORE_PAUSE)
        with suppress(KeyboardInterrupt):  # the usual way to leave
            _watch(reader, pause, as_json, textfile)
        return
    _once(reader.read(wait_for_copy=_PATIENCE), as_json, prometheus, textfile, svg)


def _once(
    snapshot: Snapshot, as_json: bool, prometheus: bool, textfile: Path | None, svg: Path | None
) -> None:
    if as_json:
        print(snapshot.model_dump_json(indent=1))
    elif prometheus:
        from cluster.status.prometheus import prometheus_text

        sys.stdout.write(prometheus_text(snapshot).decode())
    elif textfile is not None:
        _write_textfile(textfile, snapshot)
    elif svg is not None:
        _draw(snapshot, svg)
    else:
        from rich.console import Console

        from cluster.status.view import show

        show(snapshot, Console(width=None if sys.stdout.isatty() else _SVG_WIDTH))


def _watch(reader: RunReader, pause: float, as_json: bool, textfile: Path | None) -> None:
    """Look again and again, until the run is done. Ctrl-C ends it."""
    if textfile is not None:
        _repeat(reader, pause, lambda snapshot: _write_textfile(textfile, snapshot))
    elif as_json:
        _repeat(reader, pause, lambda snapshot: print(snapshot.model_dump_json(), flush=True))
    else:
        from rich.console import Console

        _watch_screen(reader, pause, Console())


def _watch_screen(reader: RunReader, pause: float, console: Console) -> None:
    """Show the view on a screen of its own; what was shown last stays after the end. Where the
    output is no terminal, print it each time."""
    from rich.live import Live

    from cluster.status.view import frame, show

    if not console.is_terminal:
        plain = type(console)(width=_SVG_WIDTH)
        _repeat(reader, pause, lambda snapshot: show(snapshot, plain))
        return
    latest = reader.read()
    try:
        with Live(frame(latest, console), console=console, screen=True, auto_refresh=False) as live:

            def update(snapshot: Snapshot) -> None:
                nonlocal latest
                latest = snapshot
                live.update(frame(snapshot, console), refresh=True)

            _repeat(reader, pause, update)
    finally:
        show(latest, console)


def _repeat(reader: RunReader, pause: float, take: Callable[[Snapshot], None]) -> None:
    while True:
        snapshot = reader.read()
        take(snapshot)
        if snapshot.state == "done":
            return
        time.sleep(pause)


def _write_textfile(path: Path, snapshot: Snapshot) -> None:
    from cluster.status.prometheus import write_textfile

    try:
        write_textfile(path, snapshot)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; give a file in a folder that "
            "this user may write to"
        ) from error


def _draw(snapshot: Snapshot, path: Path) -> None:
    import io

    from rich.console import Console

    from cluster.status.view import show

    console = Console(
        record=True,
        width=_SVG_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    show(snapshot, console)
    picture = console.export_svg(title=f"addp status {snapshot.run}", unique_id="status")
    picture = re.sub(r"\s*@font-face {[^}]*}", "", picture)  # it loads nothing from elsewhere
    try:
        path.write_text(picture)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
