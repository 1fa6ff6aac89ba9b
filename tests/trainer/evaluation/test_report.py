"""The report in a real browser, wide and narrow, light and dark, and what it must not lack."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.storage import LocalStore, open_store
from model.errors import ConfigError
from tests.patience import PATIENCE
from trainer.evaluation.reporting.page import write_report
from trainer.evaluation.reporting.records import read_run
from trainer.evaluation.reporting.state import state_of
from trainer.evaluation.results import Result, publish
from trainer.run_folder import RunFolder, write_json

PROBE = """<script>addEventListener("load", () => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    return .2126 * r + .7152 * g + .0722 * b }
  const page = light(getComputedStyle(document.body).backgroundColor)
  const contrast = color => { const l = light(color)
    return (Math.max(l, page) + .05) / (Math.min(l, page) + .05) }
  const styles = chosen => [...document.querySelectorAll(chosen)].map(e => getComputedStyle(e))
  const verdicts = [...document.querySelectorAll(".met, .missed")]
    .map(e => e.getBoundingClientRect())
  document.body.innerHTML = JSON.stringify({
    width: innerWidth, content: document.documentElement.scrollWidth, page,
    images: [...document.images].map(i => i.complete && i.naturalWidth > 0),
    labels: styles("svg text").map(s => contrast(s.fill)),
    lines: styles('svg path[style*="var(--s"]').filter(s => s.stroke != "none")
      .map(s => contrast(s.stroke)),
    verdicts: verdicts.map(r => r.width > 0 && r.left >= 0 && r.right <= innerWidth)
  }) })</script>"""


def browse(
    page: Path, width: int, dark: bool, profile: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    browser = next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))),
        None,
    )
    assert browser, (
        "this test needs Chromium: apt install chromium (`make test` does, where it may)"
    )
    return subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={width},1600",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (300, 300, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def result(step: int, benchmark: str, metrics: dict[str, Any]) -> Result:
    return Result(step=step, benchmark=benchmark, weights="raw", metrics=metrics)


@pytest.fixture
def two_runs(run: Path, tmp_path: Path) -> list[Path]:
    """A real run with evaluations of three checkpoints and some incidents, and another to compare
    it with, whose name is mathematics and markup."""
    folders = []
    for number, name in enumerate(("first", "a$b_{<i>")):
        folder = tmp_path / name
        shutil.copytree(
            run, folder, ignore=shutil.ignore_patterns("evaluation", "checkpoints", ".tmp")
        )
        store = LocalStore(folder)
        for step in (4, 8, 12):
            accuracies = {f"{v}top1_k{k}": 0.5 for v in ("", "untrained_") for k in (100, 20)}
            for benchmark, metrics, images in (
                ("proxy", {"efficientnet_frechet_distance": 200.0 / step + number}, {}),
                ("knn", {**accuracies, "images": 100}, {}),
                ("held-out", {"cross_entropy": 6.0, "unigram": 6.5, "gain": 0.5}, {}),
                (
                    "samples",
                    {"samples": 64},
                    {"": image(step), "steps": image(step + 1), "real": image(0)},
                ),
            ):
                assert publish(store, result(step, benchmark, metrics), images)
        folders.append(folder)
    RunFolder(folders[0]).incident({"event": "spike", "reason": "<b>loss</b> 9.5 above the median"})
    asked = [{"name": "PSNR", "value": "20 dB", "target": ">= 19 dB", "met": True}]
    write_json(folders[0] / "evaluation" / "targets.json", asked)
    return folders


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_in_a_browser(width: int, dark: bool, two_runs: list[Path], tmp_path: Path) -> None:
    page = write_report([str(f) for f in two_runs], tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    browse(page, width, dark, tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == width and len(np.unique(pixels)) > 50
    assert ((pixels < 128).mean() > 0.5) == dark and pixels[:, : width // 2].std() > 5

    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</head>", PROBE + "</head>"))
    answer = re.search(
        r"\{\"width\".*\}", browse(probed, width, dark, tmp_path / "profile", "--dump-dom").stdout
    )
    assert answer is not None
    seen = json.loads(answer[0])
    assert seen["content"] <= seen["width"]  # nothing is cut off or scrolls sideways
    assert len(seen["images"]) == 10 and all(seen["images"])
    assert len(seen["labels"]) > 50 and min(seen["labels"]) > 7  # legible, in either mode
    assert len(seen["lines"]) > 10 and min(seen["lines"]) > 3
    assert seen["verdicts"] == [True]


def test_what_it_says(two_runs: list[Path], tmp_path: Path) -> None:
    text = write_report([str(f) for f in two_runs], tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # self-contained
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    for title in (
        "Training loss",
        "Learning rate",
        "Images a second",
        "Nearest neighbours: top-1 accuracy, k = 20, % ↑",
    ):
        assert f'aria-label="{title}, against step"' in text, title
    assert "Fréchet distance on EfficientNet features ↓" in text
    assert text.index("k = 20,") < text.index("k = 100,") and "k = 100, untrained encoder ↑" in text
    assert "50.0 % [40.4, 59.6]" in text and "Bars: 95 % intervals" in text and "top1_k" not in text
    assert text.count("unigram of the held-out codes</li>") == 2
    assert (
        text.count('alt="Samples, step 4"') == 2
        and text.count('alt="How they come about, step 12"') == 2
    )
    assert text.count('alt="Samples, real images, held out"') == 2
    assert "16.67 <small>step 12" in text and "17.67 <small>step 12" in text
    assert "&lt;b&gt;loss&lt;/b&gt; 9.5" in text and "a$b_{&lt;i&gt;" in text and "<i>" not in text
    assert "objective: addp" in text and ">met<" in text and "could not be read" not in text
    assert (
        "Pre-training of ADDP (2 blocks of width 32, 16 px, batches of " in text
        and "finished at step 12 on " in text
    )


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.resolved.yaml", tmp_path / "config.resolved.yaml")
    text = write_report([str(tmp_path)], tmp_path / "report.html").read_text()
    assert "objective: addp" in text and "nothing is recorded of its training yet" in text
    with pytest.raises(ConfigError, match="is no run folder"):
        write_report([str(tmp_path / "none")], tmp_path / "x.html")


NOW = time.time()
EXIT = {"reason": "at step 3 of 10 (SIGTERM); saved.", "time": NOW - 60}
STATES = {
    "finished": (
        {"done.json": {"step": 3}, "exit.json": {"code": 0, "reason": "done"}},
        "finished at step 3",
    ),
    "stopped": ({"exit.json": {"code": 75, **EXIT}}, ": at step 3 of 10 (SIGTERM); saved"),
    "diverged": ({"exit.json": {"code": 77, **EXIT}}, "diverged on"),
    "failed": ({"exit.json": {"code": 74, **EXIT}}, "at step 3 of 10 with exit code 74: "),
    "running": ({"heartbeats/rank-00000.json": {"time": NOW - 90}}, "running, at step 3 of 10"),
    "died": ({"heartbeats/rank-00000.json": {"time": NOW - 9000}}, "no sign of life since"),
    "died ": (
        {"heartbeats/rank-00001.json": {"time": NOW - 9000}, "incidents.jsonl": {"event": "hang"}},
        "hung at",
    ),
    # A run that was done, and has been extended since.
    "unfinished": ({"done.json": {"step": 2}}, "its last metric line is of step 3 of 10"),
}


@pytest.mark.parametrize("word", STATES)
def test_how_a_run_stands(word: str, tmp_path: Path) -> None:
    files, sentence = STATES[word]
    (tmp_path / "config.resolved.yaml").write_text(
        "objective: mage\nschedule: {unit: steps, total: 10}\n"
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": "nan"}\n')
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    state = state_of(read_run(str(tmp_path)), NOW)
    assert state.word == word.strip() and sentence in state.sentence, state
    assert state.sentence.startswith("Training of a token predictor: ")
    assert state.sentence.endswith("; its last recorded loss is not finite.")


def test_what_lies_on_a_store_only(bucket: str, tmp_path: Path) -> None:
    """Evaluators elsewhere left their results where the run uploads to; one of them is here as
    well."""
    url, folder = f"{bucket}/runs/base", tmp_path / "run"
    store = open_store(url)
    config = f"objective: addp\ncheckpoint: {{upload: '{url}'}}\n"
    for target in (store, LocalStore(folder)):
        target.replace("config.resolved.yaml", config.encode())
        target.replace("metrics.jsonl", b'{"step": 11, "loss": 5.5}\n')
    assert publish(store, result(4, "fid", {"fid": 33.5}), {})
    assert publish(store, result(4, "samples", {"samples": 64}), {"": image(4)})
    assert publish(store, result(8, "fid", {"fid": 99.0}), {})
    assert publish(LocalStore(folder), result(8, "fid", {"fid": 22.5}), {})
    (folder / "evaluation" / "step-00000008" / "knn.json").write_text("{")
    there = write_report([url], tmp_path / "store.html").read_text()
    assert "step 4" in there and 'alt="Samples, step 4"' in there and ">99 <small>step 8" in there
    assert "not finished, as far as its store tells" in there
    here = write_report([str(folder)], tmp_path / "folder.html").read_text()
    assert (
        'alt="FID' not in here and ">22.5 <small>step 8" in here and 'alt="Samples, step 4"' in here
    )
    assert "1 record could not be read" in here and "knn.json: cannot be parsed" in here
    assert [r.step for r in read_run(str(folder)).results if r.benchmark == "fid"] == [4, 8]

    LocalStore(folder).replace(
        "config.resolved.yaml", config.replace(bucket, f"{bucket}-gone").encode()
    )
    without = write_report([str(folder)], tmp_path / "without.html").read_text()
    assert (
        ">22.5 <small>step 8" in without and f"the results on {bucket}-gone/runs/base: " in without
    )
