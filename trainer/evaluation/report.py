"""One self-contained HTML page about a run, or several side by side: how it stands, curves,
incidents, samples over time, metrics.

    python -m trainer.evaluation.report RUN [OTHER ...]

It reads what the runs wrote, in their folders or on the stores that they upload to, and computes
nothing. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from data_pipeline.storage import is_remote
    from data_pipeline.storage.output import check_output
    from trainer.evaluation.reporting.page import write_report
    from trainer.run_folder import RunFolder

    if out is None:
        if is_remote(runs[0]):
            raise typer.BadParameter("give --out FILE for a run on a store", param_hint="--out")
        out = RunFolder(runs[0]).path / "report.html"
    check_output(out, (".html", ".htm"))
    print(write_report(runs, out).resolve())


if __name__ == "__main__":
    from trainer.command import run_command

    run_command(main)
