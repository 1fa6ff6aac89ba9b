"""A benchmark is one file and one line: its metrics and images come into results and report."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from data_pipeline.storage import LocalStore
from model.errors import ConfigError
from tests.trainer.evaluation.benchmarks.brightness import Brightness
from tests.trainer.evaluation.evaluating import QUICK
from tests.trainer.worlds import Ranks
from trainer.command import run_command
from trainer.evaluation.benchmarks.registry import BENCHMARKS
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.results import read_results


def evaluate_brightness(arguments: list[str]) -> int:
    BENCHMARKS["brightness"] = Brightness()  # the one line
    from trainer.evaluation.evaluate import main

    sys.argv = ["evaluate", *arguments]
    run_command(main)
    return 0


def test_a_new_benchmark(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation", ".tmp"))
    options = ["--suite", "brightness", "--every", "4", "--images", str(images)]
    arguments = [str(folder), *QUICK, *options, "--held-out", "0.5"]
    done = Ranks(evaluate_brightness, arguments, 2, tmp_path / "log").wait()
    assert done.codes == [0, 0], done.output
    assert "brightness, benchmark 1 of 1" in done.output
    results = read_results(LocalStore(folder))
    assert [(r.step, r.benchmark) for r in results] == [(s, "brightness") for s in (4, 8, 12)]
    metrics = results[-1].metrics
    assert metrics["images"] > 40 and 0 < metrics["mean"] < 255
    assert results[-1].settings["held_out"] == 0.5 and "count" not in results[-1].settings

    again = Ranks(evaluate_brightness, [*arguments[:-1], "0.4"], 1, tmp_path / "again").wait()
    assert again.codes == [ConfigError.exit_code] and "held_out: 0.5 there" in again.output

    monkeypatch.setitem(BENCHMARKS, "brightness", Brightness())
    page = write_report([str(folder)], tmp_path / "report.html").read_text()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert 'aria-label="Brightness: bright images, % ↑, against step"' in page
    assert "Bars: 95 % intervals" in page and ">Brightness of held-out images<" in page
    assert (
        f'<td>mean brightness, grey levels ↑</td><td class="number">{metrics["mean"]:.4g}' in page
    )
    assert 'alt="The first images, step 12"' in page
