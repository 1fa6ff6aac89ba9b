"""`addp stop`: have a run save and stop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.status.read import RunReader
    from cluster.status.snapshot import Snapshot

_QUIET = 30.0  # seconds between two lines that say the same, where they do not replace each other


def stop(
    run: Annotated[
        str, typer.Argument(help="run folder, or s3://bucket/prefix that a run uploads to")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="wait until the run has ended; exit with its code")
    ] = False,
) -> None:
    """Have a run save and stop, from anywhere that sees its folder or its store.

    Creates RUN/STOP, or the object STOP on the store. The ranks save at the next border of a step
    and end with exit code 75; supervisors do not start them again. Start the run again with the
    same command to go on. Asking twice does no harm, and Ctrl-C while waiting takes nothing back.
    """
    from cluster.status import stop as stopping
    from cluster.status.read import open_run

    reader = open_run(run)
    answer, snapshot = stopping.ask(reader)
    if answer == "not running":
        _say(f"{reader.name} is not running ({snapshot.state}: {snapshot.reason}); nothing to stop")
        _clear(reader)
    elif answer == "for the next start":
        _say(
            f"{reader.name} does not train now ({snapshot.state}: {snapshot.reason}). Its launcher "
            "may start it again: STOP is there, and ends that start at once. If no launcher runs "
            f"any more, remove it before you start the run: {reader.place}/STOP"
        )
    else:
        _explain(reader, snapshot, again=answer == "asked before")
        if wait:
            snapshot = _wait(reader)
            _say(f"{reader.name}: {snapshot.state}: {snapshot.reason}")
            _clear(reader)
    if wait:
        raise typer.Exit(stopping.exit_code(snapshot))


def _explain(reader: RunReader, snapshot: Snapshot, *, again: bool) -> None:
    asked = "was asked to stop before" if again else "is asked to stop"
    looks = "at the next border of a step" if reader.folder else "when it next looks at its store"
    _say(
        f"{reader.name} {asked}: it saves {looks}, and ends with exit code 75. Start it again with "
        "the same command to go on"
    )
    if snapshot.state == "hung":
        _say(
            f"it seems to hang: {snapshot.reason}. A rank that hangs does not save; its watchdog "
            "or its supervisor ends it"
        )


def _wait(reader: RunReader) -> Snapshot:
    """Wait for the end of the run, with a line that says what it does."""
    from cluster.status import stop as stopping

    began, terminal = time.monotonic(), sys.stderr.isatty()
    snapshot, said = None, ("", 0.0)
    for snapshot in stopping.wait(reader):
        seconds = time.monotonic() - began
        line = stopping.progress_line(snapshot, seconds)
        if terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif snapshot.state != said[0] or seconds - said[1] > _QUIET:
            print(line, file=sys.stderr, flush=True)
            said = snapshot.state, seconds
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    assert snapshot is not None
    return snapshot


def _clear(reader: RunReader) -> None:
    from cluster.status import stop as stopping

    if stopping.take_back(reader):
        _say("took STOP away, which would have stopped the next start at once")


def _say(line: str) -> None:
    print(line, flush=True)
