"""The Python code that the pages for users show runs as it stands, on tiny networks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.model.networks_on_disk import save_networks

ROOT = Path(__file__).parents[1]


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name: a run, and two pictures of different sizes."""
    save_networks(tmp_path / "runs" / "demo" / "addp")
    Image.open(images / "ellipse" / "000.png").resize((60, 50)).save(tmp_path / "photo.jpg")
    Image.open(images / "line" / "001.png").save(tmp_path / "other.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_code_on_pages_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = code_blocks(ROOT / page)
    for block in blocks:
        exec(compile(block, page, "exec"), names)  # as a notebook does: one after the other
    if page == "README.md":
        assert names["features"].shape == (1, names["model"].network.config.dim)
        return
    assert len(blocks) == len(re.findall("```python", (ROOT / page).read_text())) > 8
    assert "the mask has 8 x 8 pixels, and the picture 60 x 50" in capsys.readouterr().out
    assert names["features"].shape == (2, 32) and names["patches"].shape == (1, 16, 32)
    assert [m.shape[-1] for m in names["maps"]] == [4, 2, 1, 1]
    assert names["ids"].shape == (1, 16)
    made = names["completions"] + names["pasted"] + names["wider"] + names["frames"]
    assert {picture.size for picture in made} == {(16, 16)} and len(made) == 20
    assert len(list(folder.glob("sample-*.png"))) == 16
    assert Image.open("between.gif").n_frames > 1  # type: ignore[attr-defined]
