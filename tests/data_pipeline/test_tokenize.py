from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset import MANIFEST, read_manifest
from data_pipeline.loader import TokenLoader
from data_pipeline.pictures import class_folders, read_picture
from data_pipeline.tokenize import tokenize
from data_pipeline.views import ViewRecipe, make_view
from model.config import TokenizerConfig
from model.errors import DataError
from model.vq import VQTokenizer
from model.weights import fingerprint

RECIPE = ViewRecipe(size=16, views=2)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_tokens_are_those_of_the_views(pictures: Path, tokenizer: VQTokenizer, tmp_path: Path) -> None:
    source = class_folders(pictures, "val")
    manifest = tokenize(source, tmp_path, tokenizer, RECIPE, rows=8, batch=5)
    assert manifest == read_manifest(tmp_path) and manifest.tokenizer == fingerprint(tokenizer)
    assert manifest.rows == len(source.pictures) and manifest.classes == source.classes
    loader = TokenLoader(tmp_path, global_batch=1, seed=0)
    labels = np.concatenate([r.records["label"].astype(int) for r in loader.readers])
    tokens = np.concatenate([r.records["tokens"] for r in loader.readers])
    for picture in source.pictures:
        views = np.stack([make_view(read_picture(picture.path), picture.id, v, RECIPE) for v in range(2)])
        with torch.no_grad():
            expected = tokenizer.encode(torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255).numpy()
        assert any(
            np.array_equal(row, expected) and label == picture.label for row, label in zip(tokens, labels, strict=True)
        )


def test_an_interrupted_job_gives_the_same_bytes(pictures: Path, tokenizer: VQTokenizer, tmp_path: Path) -> None:
    source = class_folders(pictures, "train")
    whole, again = tmp_path / "whole", tmp_path / "again"
    tokenize(source, whole, tokenizer, RECIPE, rows=32)
    tokenize(source, again, tokenizer, RECIPE, rows=32)
    assert folder_bytes(whole) == folder_bytes(again)
    (again / MANIFEST).unlink()
    (again / "parts" / "000001.json").unlink()  # killed after a shard was renamed, before it was vouched for
    (again / "tokens-000002.tar").unlink()
    tokenize(source, again, tokenizer, RECIPE, rows=32)
    assert folder_bytes(whole) == folder_bytes(again)


def test_bad_pictures_are_quarantined_up_to_a_limit(pictures: Path, tokenizer: VQTokenizer, tmp_path: Path) -> None:
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "line" / "000.png").write_bytes(b"no picture")
    manifest = tokenize(class_folders(copy), tmp_path / "out", tokenizer, RECIPE, rows=50)
    assert [q.id for q in manifest.quarantined] == ["line/000.png"] and manifest.rows == 119
    assert "identify" in manifest.quarantined[0].reason
    for i in range(1, 4):
        (copy / "line" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"more than the limit 1.0%: .*line/00"):
        tokenize(class_folders(copy), tmp_path / "out2", tokenizer, RECIPE)
    assert not (tmp_path / "out2" / MANIFEST).exists()


def test_another_tokenizer_or_size_is_refused(pictures: Path, tokenizer: VQTokenizer, tmp_path: Path) -> None:
    source = class_folders(pictures, "val")
    tokenize(source, tmp_path, tokenizer, RECIPE)
    other = VQTokenizer(TokenizerConfig(size="tiny")).eval()  # type: ignore[call-arg]
    with pytest.raises(DataError, match="another tokenizer"):
        tokenize(source, tmp_path, other, RECIPE)
    with pytest.raises(DataError, match="do not fit a tokenizer for 16 px"):
        tokenize(source, tmp_path / "x", tokenizer, ViewRecipe(size=32))


def test_command_line(pictures: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "data_pipeline.tokenize",
        "--tokenizer",
        str(tokenizer_file),
        "--center",
        "--split",
        "val",
    ]
    done = subprocess.run([*command, str(pictures), str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 shards, 0 quarantined" in done.stdout, done.stderr
    assert read_manifest(tmp_path / "out").views == ViewRecipe.center(16)
    done = subprocess.run(
        [*command, str(tmp_path / "none"), str(tmp_path / "o2")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and done.stderr.startswith("error: there is no picture folder")
