"""A run's network for other programs: what is written is what was trained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.errors import ConfigError
from tests.trainer.evaluation.conftest import addp_options
from tests.trainer.worlds import finish
from trainer.export import export, open_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tokens: Path, tokenizer, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    finish(folder / "run", *addp_options(folder, tokenizer, tokenizer_file, tokens), "schedule.total=4")
    return folder / "run"


def test_the_official_layout_comes_back(run: Path, tmp_path: Path) -> None:
    addp = [sys.executable, "-m", "cluster.cli"]
    subprocess.run([*addp, "export", str(run), str(tmp_path / "addp.pth"), "--format", "addp"], check=True)
    done = subprocess.run(
        [*addp, "import", str(tmp_path / "addp.pth"), str(tmp_path / "in"), "--heads", "2", "--decoder-heads", "2"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count('"kind"') == 3
    before, after = load_file(run / "network.safetensors"), load_file(tmp_path / "in" / "addp.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert (tmp_path / "in" / "tokenizer.safetensors").exists() and (tmp_path / "in" / "predictor.safetensors").exists()
    # and what came in goes out again
    again = open_network(str(tmp_path / "in" / "addp.safetensors"), None, "raw")
    assert load_file(export(again, "timm", tmp_path / "vit.safetensors", "drop", None))["cls_token"].shape == (1, 1, 32)


def test_the_model_cards_code_runs(run: Path, tmp_path: Path) -> None:
    folder = export(open_network(str(run), 4, "ema"), "huggingface", tmp_path / "card", "drop", None)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.safetensors",
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: addp\n")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["features (2, 17, 32)", "samples (4, 3, 16, 16)"], done.stderr


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists; give a name that is free"):
        export(open_network(str(run), None, "raw"), "native", tmp_path / "there", "drop", None)
    with pytest.raises(ConfigError, match="no checkpoint of step 3"):
        open_network(str(run), 3, "raw")
