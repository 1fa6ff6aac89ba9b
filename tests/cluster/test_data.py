"""`addp data`: bench, preview, order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from data_pipeline.loader import LoaderOptions, TokenLoader
from data_pipeline.sources import split_of


def data(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ.copy())


def test_bench(tokens: Path) -> None:
    done = data("bench", str(tokens), "--global-batch", "16", "--seconds", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples_per_second"] > 1000 and found["first_batch_ms"] > 0 and found["epochs"] > 1


def test_order_names_the_pictures_of_a_step(tokens: Path, pictures: Path) -> None:
    done = data("order", str(tokens), "--step", "9", "--global-batch", "16", "--count", "5", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    reader = TokenLoader(tokens, global_batch=16, seed=3, options=LoaderOptions())
    assert [entry["label"] for entry in found] == reader.batch(9, 0, 5).labels.tolist()
    labels = {p.id: p.label for p in split_of(pictures).pictures}
    assert all(labels[entry["picture"]] == entry["label"] for entry in found)
    assert found[0]["epoch"] == 9 // reader.schedule.steps_per_epoch
    reader.close()
    refused = data("order", str(tokens), "--step", "0", "--global-batch", "4", "--count", "5")
    assert refused.returncode == 78 and "beyond the global batch" in refused.stderr


def test_preview(tokens: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "preview.png"
    arguments = ("preview", str(tokens), "--global-batch", "16", "--page", str(page), "--count", "9", "--zoom", "2")
    done = data(*arguments, "--tokenizer", str(tokenizer_file))
    assert done.returncode == 0, done.stderr
    assert Image.open(page).size == (3 * 34 + 2, 3 * 34 + 2)
    missing = data("bench", str(tmp_path))
    assert missing.returncode == 1 and "is no finished token data set" in missing.stderr
