"""One self-contained HTML page about a run, or several side by side: curves, incidents, samples over time, figures.

Reads what the runs wrote, here or on the store that they upload to, and computes nothing; imports no torch.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
import matplotlib as mpl
import typer

from data_pipeline.output import check_output
from data_pipeline.storage import ObjectMissing, Store, open_store
from model.errors import ConfigError
from trainer.evaluation.results import FOLDER, flattened, read_results, suffix
from trainer.run_folder import TARGETS, RunFolder, json_lines, replace_text, step_folder

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLORS = ("#2a6fbb", "#c8553d", "#3a8f5c", "#8a5fb5", "#b58a1b", "#4a4a4a")
_CURVES = (
    ("loss", "training loss"), ("lr", "learning rate"), ("images_per_second", "images a second"),
    ("grad_norm", "gradient norm"),
)  # fmt: skip
_VARIANTS = ("untrained_", "pixels_")  # before the names of figures: what they are compared with
_UNPLOTTED = ("_std", "majority_class", "pictures", "samples")
_GRIDS = 6  # samples over time: at most so many checkpoints
_INCIDENTS = 200  # the latest ones


class RunRecord(NamedTuple):
    """What a run wrote."""

    name: str
    config: str
    objective: str
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    incidents: list[dict[str, Any]]
    results: list[dict[str, Any]]
    targets: list[dict[str, Any]]
    store: Store


def read_run(run: str) -> RunRecord:
    """Raises ConfigError where there is no such run, StorageError where it cannot be read."""
    store = open_store(run)

    def text(name: str) -> str:
        try:
            return store.read(name).decode()
        except ObjectMissing:
            return ""

    config = text("config.resolved.yaml")
    if not config:
        raise ConfigError(f"{run} is no run folder: it has no config.resolved.yaml; give the folder that `run=` named")
    objective = next((line.split()[1] for line in config.splitlines() if line.startswith("objective:")), "")
    return RunRecord(
        run.rstrip("/").rpartition("/")[2], config, objective, json.loads(text("environment.json") or "{}"),
        json_lines(text("metrics.jsonl")), json_lines(text("incidents.jsonl")), read_results(store),
        json.loads(text(f"{FOLDER}/{TARGETS}") or "[]"), store,
    )  # fmt: skip


def _plot(title: str, lines: list[tuple[str, str, list[float], list[float]]], *, points: bool = False) -> str:
    """lines: (label, color, steps, values). An SVG as data URI."""
    figure, axis = plt.subplots(figsize=(5.2, 3.1), layout="constrained")
    for label, color, steps, values in lines:
        axis.plot(steps, values, color=color, label=label, linewidth=1.4, marker="o" if points else None, markersize=4)
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(fontsize=8, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def curves(runs: list[RunRecord]) -> list[tuple[str, str]]:
    """(title, picture) of what the training loop measured; runs of one kind share a plot."""
    plots = []
    kinds = list(dict.fromkeys(run.objective for run in runs))
    for key, title in _CURVES:
        for kind in kinds:
            lines = []
            for run, color in zip(runs, _COLORS * len(runs), strict=False):
                rows = [r for r in run.metrics if r.get(key) is not None and run.objective == kind]
                if rows:
                    lines.append((run.name, color, [r["step"] for r in rows], [float(r[key]) for r in rows]))
            if lines:
                plots.append((f"{title} ({kind})" if len(kinds) > 1 else title, _plot(title, lines)))
    return plots


def measured(runs: list[RunRecord]) -> list[tuple[str, str]]:
    """(title, picture) of each figure of the evaluations that has several checkpoints to show; what it is compared with
    (an untrained encoder, raw pixels, an average of the weights, other runs) shares its plot."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for result in run.results:
            for name, value in flattened(result["figures"]):
                variant = next((v for v in _VARIANTS if name.startswith(v)), "")
                label = " ".join(filter(None, (run.name, suffix(result["weights"]).strip("-"), variant.strip("_"))))
                if not name.endswith(_UNPLOTTED):
                    series[f"{result['part']}: {name.removeprefix(variant)}"][label].append((result["step"], value))
    plots = []
    for title, lines in sorted(series.items()):
        if any(len(values) > 1 for values in lines.values()):
            drawn = [
                (label, color, [float(step) for step, _ in values], [value for _, value in values])
                for (label, values), color in zip(lines.items(), _COLORS * len(lines), strict=False)
            ]
            plots.append((title, _plot(title, drawn, points=True)))
    return plots


class Table(NamedTuple):
    """columns: runs, an average of the weights apart. rows: (figure, text of each column)."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


def newest_figures(runs: list[RunRecord]) -> Table:
    """The newest value of each figure in each run: what compares runs."""
    newest: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
    for run in runs:
        for result in run.results:  # by step, so that the newest stays
            for name, value in flattened(result["figures"]):
                column = run.name + (" (average)" if result["weights"] == "ema" else "")
                newest[f"{result['part']}: {name}"][column] = (result["step"], value)
    columns = list(dict.fromkeys(column for row in newest.values() for column in row))
    return Table(columns, [
        (name, [f"{row[c][1]:.4g} (step {row[c][0]})" if c in row else "" for c in columns])
        for name, row in sorted(newest.items())
    ])  # fmt: skip


_TITLES = {  # in the order of the page
    ("samples", ""): ("Samples", "Generated from nothing but masked tokens; none was chosen."),
    ("samples", "steps"): ("How they come about", "One sample a row, its denoising steps from left to right."),
    ("held-out", "x_t"): (
        "What ADDP sees",
        "Held-out pictures, from left: the picture; decoded with 99, 90, 75, 60 and 51 % of its tokens unreliable (the "
        "predictor's expected codes); decoded from all its own tokens.",
    ),
    ("held-out", "reconstructions"): ("Reconstructions", "Held-out pictures; below, what the tokenizer keeps."),
}  # fmt: skip


def pictures(run: RunRecord) -> list[dict[str, Any]]:
    """Pictures of the evaluations by what they show: samples over time, of the others the latest."""
    shown = []
    for (part, key), (title, note) in _TITLES.items():
        for weights in ("raw", "ema"):
            found = [
                (r["step"], f"{FOLDER}/{step_folder(r['step'])}/{r['pictures'][key]}")
                for r in run.results
                if r["part"] == part and r["weights"] == weights and key in r["pictures"]
            ]
            if found:
                last, most = len(found) - 1, 1 if key else _GRIDS
                chosen = sorted({last - round(i * last / max(1, most - 1)) for i in range(most)})
                shown.append({
                    "title": title + (" of the average" if weights == "ema" else ""), "note": note,
                    "steps": [(found[i][0], _embedded(run.store.read(found[i][1]))) for i in chosen],
                })  # fmt: skip
    return shown


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def summary(run: RunRecord) -> dict[str, Any]:
    """Of the head of the page."""
    last = run.metrics[-1] if run.metrics else {}
    seconds = last.get("train_seconds")
    return {
        "name": run.name, "objective": run.objective, "step": last.get("step", -1) + 1,
        "loss": f"{last['loss']:.4f}" if "loss" in last else "", "starts": last.get("starts", ""),
        "hours": f"{seconds / 3600:.2f}" if seconds is not None else "",
        "lost": f"{last.get('lost_seconds', 0) / 60:.1f}" if last else "",
        "ranks": run.environment.get("world_size", ""), "device": run.environment.get("device", ""),
    }  # fmt: skip


def write_report(names: list[str], out: Path) -> Path:
    """Raises ConfigError, StorageError."""
    runs = [read_run(name) for name in names]
    for run in runs:
        for incident in run.incidents:
            incident["when"] = datetime.fromtimestamp(incident["time"]).isoformat(" ", "seconds")
    environment = jinja2.Environment(loader=jinja2.PackageLoader("trainer.evaluation", "."), autoescape=True)
    page = environment.get_template("report.html").render(
        title=", ".join(run.name for run in runs), runs=runs, summaries=[summary(run) for run in runs],
        curves=curves(runs), measured=measured(runs), newest=newest_figures(runs),
        pictures=[(run.name, pictures(run)) for run in runs],
        incidents=[(run.name, run.incidents[-_INCIDENTS:], len(run.incidents)) for run in runs],
        targets=[t for run in runs for t in run.targets], written=datetime.now().isoformat(" ", "minutes"),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, page)
    return out


def main(
    runs: Annotated[list[str], typer.Argument(help="run folders, or s3:// where runs upload to; several are compared")],
    out: Annotated[Path | None, typer.Option(help="HTML file; else report.html in the first run's folder")] = None,
) -> None:
    """Write a page with curves, incidents, samples over time, evaluation figures and configuration of runs."""
    if out is None:
        if "://" in runs[0]:
            raise typer.BadParameter("give --out FILE for a run on a store", param_hint="--out")
        out = RunFolder(runs[0]).path / "report.html"
    check_output(out, (".html", ".htm"))
    print(write_report(runs, out).resolve())


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
