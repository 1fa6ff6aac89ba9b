"""Altered images find their originals: a result with intervals, and a picture for the report."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_pipeline.storage import LocalStore
from tests.trainer.evaluation.evaluating import codes, start
from trainer.evaluation.measures.retrieval import places
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.results import read_results

KINDS = ("untrained", "pixels", "colour")


def test_what_is_as_near_or_no_number_counts_as_nearer() -> None:
    cosine = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert places(cosine).tolist() == [1, 2, 3]
    assert places(cosine * torch.nan).tolist() == [3, 3, 3]


def test_altered_images_find_their_originals(run: Path, images: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for ranks, folder in enumerate(folders, 1):
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation", ".tmp"))
        options = ("--suite", "retrieval", "--baselines", "--images", str(images))
        log = tmp_path / f"{ranks}.log"
        started = start(folder, log, *options, "--held-out", "0.4", world_size=ranks)
        assert codes(started) == [0] * ranks, log.read_text()
    found, again = (read_results(LocalStore(folder))[0] for folder in folders)
    assert found.metrics == again.metrics

    metrics = dict(found.numbers)
    assert metrics["images"] > 30 and found.settings["seed"] == 0
    for name in ("top1", "top5", "mean_top1", "mean_top5"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
        for kind in KINDS[:2]:
            ahead = metrics[name] - metrics[f"{kind}_{name}"]
            assert metrics[f"{name}_over_{kind}"] == pytest.approx(ahead)
    # One of a few dozen, by chance; these shapes differ in colour, which no turn changes.
    assert metrics["colour_top1"] > 0.1 and "colour_mean_top1" not in metrics

    name = found.images["nearest"]
    picture = Image.open(io.BytesIO((folders[0] / "evaluation/step-00000012" / name).read_bytes()))
    columns, zoom = 1 + 2 * (1 + 5), 96 // 16
    assert picture.size == (columns * (16 * zoom + 2) + 2, 8 * (16 * zoom + 2) + 2)
    page = write_report([str(folders[0])], tmp_path / "report.html").read_text()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    assert 'alt="Retrieval, step 12"' in page and "ahead of raw pixels ↑" in page
