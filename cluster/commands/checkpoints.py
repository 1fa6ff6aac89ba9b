"""`addp checkpoints`: look at a run's checkpoints, check them, remove old ones."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from model.errors import ADDPError
from trainer.config.options import LARGEST_STEP, AsJson, step_option


class Action(StrEnum):
    """What to do with a run's checkpoints."""

    list = "list"
    verify = "verify"
    prune = "prune"


def checkpoints(
    run: Annotated[
        str, typer.Argument(help="run folder, or s3://bucket/prefix that a run uploads to")
    ],
    action: Annotated[Action, typer.Argument(help="what to do")] = Action.list,
    step: Annotated[int | None, step_option("verify: only the checkpoint of this step")] = None,
    keep: Annotated[
        int, typer.Option(min=1, max=LARGEST_STEP, help="prune: how many of the newest stay")
    ] = 3,
    permanent_every: Annotated[
        int, step_option("prune: those at multiples of this step stay as well; 0: none")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="prune: list what would go, and remove nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List, verify or prune checkpoints; `addp export` takes a network out of one."""
    from trainer.checkpointing import admin
    from trainer.checkpointing.catalog import open_catalog

    if dry_run and action is not Action.prune:
        raise typer.BadParameter("goes with prune only", param_hint="--dry-run")
    catalog = open_catalog(run)
    if action is Action.list:
        _show(admin.listed(catalog), as_json)
    elif action is Action.verify:
        rows = admin.verified(catalog, step)
        _show(rows, as_json)
        if any(row["state"] != "valid" for row in rows):
            raise ADDPError(
                f"{sum(row['state'] != 'valid' for row in rows)} of {len(rows)} checkpoints are "
                "not valid"
            )
    elif dry_run:
        rows = admin.prunable(catalog, keep, permanent_every)
        _show(rows, as_json, f"{run}: prune would remove nothing")
        if rows and not as_json:
            size, total = sum(row["bytes"] or 0 for row in rows) / 2**20, len(catalog.steps())
            print(
                f"{run}: prune would remove {len(rows)} of {total} checkpoints, {size:.1f} MiB; "
                "nothing was removed"
            )
    else:
        gone = admin.pruned(catalog, keep, permanent_every)
        print(
            f"{run}: removed {len(gone)} checkpoints"
            + (f": steps {', '.join(map(str, gone))}" if gone else "")
        )


def _show(rows: list[dict[str, Any]], as_json: bool, empty: str = "no checkpoints") -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("step", "right"),
        ("state", "left"),
        ("ranks", "right"),
        ("ZeRO", "right"),
        ("size", "right"),
        ("saved", "left"),
        ("remark", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        size = f"{row['bytes'] / 2**20:.1f} MiB" if row["bytes"] is not None else ""
        values = (
            row["step"],
            row["state"],
            row["ranks"],
            row["zero_stage"],
            size,
            row["saved"],
            row["remark"],
        )
        table.add_row(*("" if v is None else str(v) for v in values))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
