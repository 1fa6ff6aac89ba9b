"""Whether all nodes see the same run folder, and how soon. Each function is called on all nodes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.preflight.doctor.exchange import Exchange
from trainer.preflight.finding import Finding

_LISTING = 10.0  # seconds to look for a file in a listing, on which nothing depends
_LOOK = 0.02
_SLOW = 5.0
_NAME = "shared folder"


def check_sharing(run: Path | None, exchange: Exchange, sight: float) -> list[Finding]:
    """Find out whether this node sees in its run folder what node 0 writes there. Nothing is left
    behind.

    run: this node's own path of it; None where its configuration cannot be read. sight: seconds to
    look for it.
    """
    first = exchange.world.rank == 0
    # A file system client may remember what it has listed.
    folders = [folder for folder in ((run, *run.parents) if run else ()) if not folder.exists()]
    with suppress(OSError):
        _names(run)
    name = f".addp-check-{uuid.uuid4().hex[:12]}"
    told = exchange.tell("mark", lambda: _leave(run, name))
    findings: list[Finding] = []
    if told and told.get("error"):
        if first:
            todo = "look at its mount, owner and mode"
            findings.append(Finding(_NAME, "FAILED", f"{run}: {told['error']}", todo))
    elif told and run and not first:
        findings += _look_for(run, told["name"], sight)
    exchange.gather("seen", True, sight + 60)
    if first and run:
        with suppress(OSError):
            (run / name).unlink(missing_ok=True)
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
    return findings


def _names(folder: Path | None) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder else set()


def _leave(run: Path | None, name: str) -> dict[str, str]:
    if run is None:
        return {}
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"")
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {"name": name}


def _look_for(run: Path, name: str, sight: float) -> Iterator[Finding]:
    """Look for a file by its name, as most of what ranks share is found, and in a listing."""
    began = time.monotonic()
    opened: float | None = None
    listed: float | None = None
    while opened is None or listed is None:
        passed = time.monotonic() - began
        if opened is None and (run / name).exists():
            opened = passed
        with suppress(OSError):
            if listed is None and name in _names(run):
                listed = passed
        if passed > (sight if opened is None else _LISTING):
            break
        time.sleep(_LOOK)
    if opened is None:
        found = f"{run} is not the run folder that node 0 sees"
        yield Finding(_NAME, "FAILED", found, "put it on storage that all nodes share")
        return
    listing = f"not after {_LISTING:g} s" if listed is None else f"after {listed:.2f} s"
    found = f"{run} is shared: a new file of node 0 is found after {opened:.2f} s, listed {listing}"
    if opened > _SLOW:
        todo = "mount it so that names are remembered shorter (NFS: acregmax, lookupcache=positive)"
        yield Finding(_NAME, "warning", found, todo)
    else:
        yield Finding(_NAME, "ok", found)
