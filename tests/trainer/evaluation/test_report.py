"""The report in a real browser, wide and narrow, and what it must not lack."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.storage import LocalStore
from model.errors import ConfigError
from trainer.evaluation.report import write_report
from trainer.evaluation.results import publish
from trainer.run_folder import RunFolder, write_json

PROBE = """<script>addEventListener("load", () => { document.body.innerHTML = JSON.stringify({
  width: innerWidth, content: document.documentElement.scrollWidth,
  pictures: [...document.images].map(i => i.complete && i.naturalWidth > 0) }) })</script>"""


def browse(page: Path, width: int, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    assert found, "this test needs Chromium: apt install chromium (`make test` does, where it may)"
    return subprocess.run(
        [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={width},1600", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def grid(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (300, 300, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def two_runs(run: Path, tmp_path: Path) -> list[Path]:
    """A real run with evaluations of three checkpoints and some incidents, and another to compare it with."""
    folders = []
    for number, name in enumerate(("first", "second")):
        folder = tmp_path / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation", "checkpoints", ".tmp"))
        for step in (4, 8, 12):
            for part, figures, pictures in (
                ("proxy", {"efficientnet_frechet_distance": 200.0 / step + number}, {}),
                ("samples", {"samples": 64}, {"": grid(step), "steps": grid(step + 1)}),
            ):
                result = {"step": step, "part": part, "weights": "raw", "figures": figures, "settings": {}, "made": {}}
                assert publish(LocalStore(folder), result, pictures)  # type: ignore[arg-type]
        folders.append(folder)
    RunFolder(folders[0]).incident({"event": "spike", "reason": "<b>loss</b> 9.5 above the median"})
    asked = [{"name": "PSNR", "value": "20 dB", "target": ">= 19 dB", "met": True}]
    write_json(folders[0] / "evaluation" / "targets.json", asked)
    return folders


@pytest.mark.parametrize("width", [1400, 390])
def test_in_a_browser(width: int, two_runs: list[Path], tmp_path: Path) -> None:
    page = write_report([str(f) for f in two_runs], tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    browse(page, width, tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == width and len(np.unique(pixels)) > 50
    assert (pixels < 128).mean() > 0.005 and pixels[:, : width // 2].std() > 5

    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</head>", PROBE + "</head>"))
    answer = re.search(r"\{\"width\".*\}", browse(probed, width, tmp_path / "profile", "--dump-dom").stdout)
    assert answer is not None
    found = json.loads(answer[0])
    assert found["content"] <= found["width"]  # nothing is cut off or scrolls sideways
    assert len(found["pictures"]) >= 12 and all(found["pictures"])


def test_what_it_says(two_runs: list[Path], tmp_path: Path) -> None:
    text = write_report([str(f) for f in two_runs], tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)  # self-contained
    for part in ("training loss", "learning rate", "images a second", "proxy: efficientnet_frechet_distance"):
        assert f'alt="{part}' in text, part
    assert text.count("Samples at step 4") == 2 and text.count("How they come about at step 12") == 2
    assert "16.67 (step 12)" in text and "17.67 (step 12)" in text
    assert "&lt;b&gt;loss&lt;/b&gt; 9.5" in text and "objective: addp" in text and ">met<" in text


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.resolved.yaml", tmp_path / "config.resolved.yaml")
    assert "objective: addp" in write_report([str(tmp_path)], tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="is no run folder"):
        write_report([str(tmp_path / "none")], tmp_path / "x.html")
