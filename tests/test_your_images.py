"""The page docs/your-images.md is run as it stands: its Python and its commands, with the shorter
trainings that its last section names, on the photographs that come with packages of the tests'
environment. Tests can so run where no other package may be installed.

scikit-learn's are by Daniel Buechele and by vultilion (CC BY 2.0), matplotlib's is in the public
domain."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import sklearn
from PIL import Image

from data_pipeline.storage import LocalStore
from tests.cluster.calling import typed
from trainer.evaluation.results import read_results

PAGE = Path(__file__).parents[1] / "docs" / "your-images.md"
SKLEARN, MATPLOTLIB = (Path(package.__path__[0]) for package in (sklearn, matplotlib))
PHOTOGRAPHS = {
    "places": SKLEARN / "datasets" / "images" / "china.jpg",
    "plants": SKLEARN / "datasets" / "images" / "flower.jpg",
    "people": MATPLOTLIB / "mpl-data" / "sample_data" / "grace_hopper.jpg",
}


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in re.split(r"&&|\n", block.replace("\\\n", " ")):
        if words := shlex.split(line):
            yield words


def shown(text: str, pattern: str) -> list[str]:
    """The words of what the page shows within a line."""
    found = re.search(pattern, text)
    assert found is not None, pattern
    return found[1].split()


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, file in PHOTOGRAPHS.items():
        (tmp_path / "originals" / folder).mkdir(parents=True)
        shutil.copy(file, tmp_path / "originals" / folder)
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    brief = shown(text, r"append `(schedule[^`]*)`")
    few_steps = shown(text, r"and `(--steps \d+)`")
    shorter = {"train": brief, "evaluate": few_steps, "generate": few_steps}
    names: dict[str, Any] = {}
    called = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), names)
            continue
        for program, *words in commands(block):
            assert program == "addp"
            done = typed(*words, *shorter.get(words[0], []))
            assert done.code == 0, (words, done.stdout, done.stderr)
            called.append(words[0])
    assert called == [
        *("train", "tokenize", "tokenize", "train", "train", "evaluate", "report", "generate")
    ]
    assert len(list(Path("photos").glob("*/*.png"))) == 19 + 19 + 14
    results = read_results(LocalStore(tmp_path / "runs" / "mine" / "addp"))
    assert {result.benchmark for result in results} == {"samples", "knn"}
    assert "data:image/png;base64," in Path("report.html").read_text()
    assert Image.open("pictures.png").width > 4 * 32
    assert np.load("vectors.npy").shape == (52, 128)
