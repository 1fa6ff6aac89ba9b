"""One self-contained HTML page about a run, or several side by side: how it stands, curves,
incidents, samples over time, metrics.

It reads what the runs wrote, in their folders or on the stores that they upload to, and computes
nothing. Imports no torch.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer

from data_pipeline.storage import is_remote
from data_pipeline.storage.output import check_output
from trainer.evaluation.reporting.images import image_groups
from trainer.evaluation.reporting.metrics import newest_metrics, series_of
from trainer.evaluation.reporting.plots import Line, Plot, plot
from trainer.evaluation.reporting.records import RunRecord, read_run
from trainer.evaluation.reporting.state import duration, state_of, when
from trainer.run_folder import RunFolder, replace_text

_CURVES = (
    ("loss", "Training loss"),
    ("lr", "Learning rate"),
    ("images_per_second", "Images a second"),
    ("grad_norm", "Gradient norm"),
)
_NETWORKS = {"addp": "ADDP", "mage": "token predictor", "classify": "classifier"}
_SMOOTHED = "The training loss is label-smoothed, which the unigram's cross-entropy is not."
_VARIANT_STYLES = ("solid", "dashed", "dotted")
_INCIDENTS = 200  # the latest ones
_FAULTS = 50  # lines on what was left out
_TEXT = 500  # characters of a value


def curves(runs: list[RunRecord]) -> list[Plot]:
    """What the training loop measured; runs with the same objective share a plot."""
    plots = []
    objectives = list(dict.fromkeys(run.objective for run in runs))
    for key, title in _CURVES:
        for objective in objectives:
            chosen = [(index, run) for index, run in enumerate(runs) if run.objective == objective]
            lines = [line for index, run in chosen if (line := _curve(index, run, key)) is not None]
            if not lines:
                continue
            levels = [
                level
                for index, run in chosen
                if key == "loss" and (level := _unigram(index, run, len(chosen))) is not None
            ]
            whose = f" ({_NETWORKS.get(objective, objective)})" if len(objectives) > 1 else ""
            plots.append(plot(title + whose, lines, levels, note=_SMOOTHED if levels else ""))
    return plots


def _curve(index: int, run: RunRecord, key: str) -> Line | None:
    rows = [row for row in run.metrics if key in row]
    if not any(math.isfinite(row[key]) for row in rows):
        return None
    steps, values = [row["step"] + 1 for row in rows], [row[key] for row in rows]
    return Line(run.name, index, "solid", steps, values)


def _unigram(index: int, run: RunRecord, runs: int) -> Line | None:
    """What a guess of codes by their frequency would cost, by the run's held-out evaluation."""
    values = [
        result.metrics["unigram"]
        for result in run.results
        if result.benchmark == "held-out" and "unigram" in result.metrics
    ]
    if not values:
        return None
    whose, color = (f"{run.name}, ", index) if runs > 1 else ("", 3)
    return Line(f"{whose}unigram of the held-out codes", color, "dashed", [], values[-1:])


def measured(runs: list[RunRecord]) -> list[Plot]:
    """A plot for each metric that several checkpoints have.

    Runs differ in colour; where there is only one, what it is compared with differs in colour.
    """
    plots = []
    for name, series in series_of(runs):
        lines = []
        for index, s in enumerate(series):
            values = [v.value for v in s.values]
            errors = [math.nan if v.error is None else v.error for v in s.values]
            style = "fine" if s.ema else _VARIANT_STYLES[s.variant % len(_VARIANT_STYLES)]
            color = s.run if len({other.run for other in series}) > 1 else index
            known = errors if any(map(math.isfinite, errors)) else None
            lines.append(
                Line(s.label, color, style, [float(v.step) for v in s.values], values, known)
            )
        note = (
            "Bars: one standard error, by the number of images."
            if name.metric.counted_by
            else "Bars: one standard deviation."
        )
        note = note if any(line.errors for line in lines) else ""
        plots.append(plot(name.title, lines, points=True, note=note))
    return plots


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


def main(
    runs: Annotated[
        list[str],
        typer.Argument(help="run folders, or s3:// where runs upload to; several are compared"),
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file; else report.html in the first run's folder")
    ] = None,
) -> None:
    """Write a page with curves, incidents, samples over time, metrics of evaluations and
    configuration of runs.

    A run folder whose configuration names `checkpoint.upload` also shows what evaluators left
    there.
    """
    if out is None:
        if is_remote(runs[0]):
            raise typer.BadParameter("give --out FILE for a run on a store", param_hint="--out")
        out = RunFolder(runs[0]).path / "report.html"
    check_output(out, (".html", ".htm"))
    print(write_report(runs, out).resolve())


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
