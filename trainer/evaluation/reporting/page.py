"""The page of a report: what the runs wrote, put into one HTML file that needs no other."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jinja2

from trainer.evaluation.reporting.class_tables import class_tables
from trainer.evaluation.reporting.curves import curves, measured
from trainer.evaluation.reporting.images import image_groups
from trainer.evaluation.reporting.metrics import newest_metrics
from trainer.evaluation.reporting.records import RunRecord, read_run
from trainer.evaluation.reporting.state import duration, state_of, when
from trainer.run_folder import replace_text

_INCIDENTS = 200  # the latest ones
_FAULTS = 50  # lines on what was left out
_TEXT = 500  # characters of a value


def summary(run: RunRecord) -> dict[str, Any]:
    """The row of a run in the table at the head of the page."""
    last = run.metrics[-1] if run.metrics else {}

    def known(key: str, text: str, scale: float = 1.0) -> str:
        return format(last[key] / scale, text) if math.isfinite(last.get(key, math.nan)) else ""

    trained = last.get("train_seconds", math.nan)
    return {
        "run": run.name,
        "steps": f"{run.steps:,}",
        "loss": known("loss", ".4f") or ("not finite" if "loss" in last else ""),
        "trained": duration(trained) if math.isfinite(trained) else "",
        "minutes lost": known("lost_seconds", ".1f", 60),
        "starts": known("starts", ".0f"),
        "skipped steps": known("skipped_steps", ".0f"),
        "incidents": f"{len(run.incidents):,}" if run.incidents else "none",
        "ranks": _text(run.environment.get("world_size", "")),
        "device": _text(run.environment.get("device", "")),
    }


def _text(value: Any) -> str:
    """A value of a record as text of a bearable length."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _TEXT else text[:_TEXT] + " ..."


def incident_rows(run: RunRecord) -> list[dict[str, str]]:
    """The latest incidents: when, what, where, and all else that the record says."""
    return [
        {
            "when": when(row.get("time")),
            "event": _text(row.get("event", "")),
            "rank": _text(row.get("rank", "")),
            "more": "; ".join(
                f"{_text(k)}: {_text(v)}"
                for k, v in row.items()
                if k not in ("time", "event", "rank")
            ),
        }
        for row in run.incidents[-_INCIDENTS:]
    ]


def write_report(names: list[str], out: Path) -> Path:
    """Write the page, whatever is broken in what the runs wrote.

    Raises ConfigError where there is no such run, and StorageError.
    """
    runs = [read_run(name) for name in names]
    now = time.time()
    images = [(run.name, image_groups(run)) for run in runs]  # before what is left out is counted
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.evaluation.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        states=[state_of(run, now) for run in runs],
        summaries=[summary(run) for run in runs],
        curves=curves(runs),
        measured=measured(runs),
        newest=newest_metrics(runs),
        classes=class_tables(runs),
        images=images,
        incidents=[(run, incident_rows(run)) for run in runs],
        targets=[goal for run in runs for goal in run.targets],
        written=when(now),
        left_out=[
            (run.name, run.left_out.most_common(_FAULTS), run.left_out)
            for run in runs
            if run.left_out
        ],
        faults=sum(run.left_out.total() for run in runs),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # JSON may hold halves of characters, which cannot be written.
    replace_text(out, page.encode("utf-8", "replace").decode())
    return out
