"""The format of checkpoints: what is written is read back, whatever the division, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer.checkpoint import (
    MANIFEST,
    Damaged,
    FileEntry,
    Manifest,
    NoValidCheckpoint,
    parse_manifest,
    snapshot,
    verify,
    write_snapshot,
)
from trainer.checkpoint_admin import Place
from trainer.config import CheckpointSection
from trainer.retention import expired, prune
from trainer.saved_state import SavedState


def manifest(files: dict[str, FileEntry], step: int = 4) -> Manifest:
    return Manifest(
        step=step, world_size=len(files), zero_stage=1, facts={}, parameters={"w": [5, 2]}, part="", kinds=["weights"],
        applied=step, scaler={}, skipped=[], progress={}, files=files,
    )  # fmt: skip


def make(folder: Path, cuts: list[int], step: int = 4) -> Path:
    """A checkpoint of one parameter 0 .. 9, cut into pieces at `cuts`, one piece a file."""
    values, path = torch.arange(10.0), folder / f"step-{step:08d}"
    borders = [0, *sorted(cuts), 10]
    files = {}
    for rank, (a, b) in enumerate(pairwise(borders)):
        files[f"rank-{rank:05d}.safetensors"] = write_snapshot(
            path / f"rank-{rank:05d}.safetensors", snapshot([(f"weights/w@{a}", values[a:b])], None)
        )
    (path / MANIFEST).write_text(manifest(files, step).model_dump_json())
    return path


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), max_size=4, unique=True), st.integers(0, 9), st.integers(1, 10))
def test_any_range_is_read_from_any_division(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, length: int
) -> None:
    path = make(tmp_path_factory.mktemp("division"), cuts)
    length = min(length, 10 - start)
    found = SavedState(path, verify(path)).read("weights", "w", start, length)
    assert found.tolist() == list(range(start, start + length))


def test_files_are_plain_safetensors_of_every_dtype(tmp_path: Path) -> None:
    tensors = {
        "bool": torch.tensor([True, False, True]), "long": torch.arange(3), "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5), "matrix": torch.randn(2, 3), "double": torch.rand(2, dtype=torch.float64),
    }  # fmt: skip
    stated = write_snapshot(tmp_path / "a.safetensors", snapshot(tensors.items(), None))
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())
    assert stated.bytes == (tmp_path / "a.safetensors").stat().st_size


def test_a_snapshot_no_longer_changes(tmp_path: Path) -> None:
    value = torch.zeros(4)
    content = snapshot([("w", value)], None)
    value.fill_(1)
    write_snapshot(tmp_path / "a.safetensors", content)
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [0] * 4
    again = snapshot([("w", value)], content.payload)
    assert again.payload.data_ptr() == content.payload.data_ptr()  # no second buffer


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors", MANIFEST])
@pytest.mark.parametrize("fault", ["flip", "cut", "missing", "empty", "longer"])
def test_every_fault_in_every_file_is_seen(name: str, fault: str, tmp_path: Path) -> None:
    path = make(tmp_path, [5])
    file = path / name
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    else:
        if fault == "flip":
            content[len(content) // 2 + 1] ^= 0x80
        file.write_bytes({"cut": content[:-3], "empty": b"", "longer": content + b"x"}.get(fault, bytes(content)))
    with pytest.raises(Damaged, match="step-00000004"):
        verify(path)
    with pytest.raises(NoValidCheckpoint, match="none is valid"):
        Place("run", tmp_path, None).newest_valid()
    make(tmp_path, [5], step=2)
    assert Place("run", tmp_path, None).newest_valid() == 2


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch bomb-went-off",)


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose manifest vouches for it."""
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path, [])
    file = path / "rank-00000.safetensors"
    for bomb in (pickle.dumps(_Bomb()), b"PK\x03\x04" + pickle.dumps(_Bomb())):
        file.write_bytes(bomb)
        with pytest.raises(Damaged):
            verify(path)
        import hashlib

        entry = FileEntry(bytes=len(bomb), sha256=hashlib.sha256(bomb).hexdigest())
        (path / MANIFEST).write_text(manifest({file.name: entry}).model_dump_json())
        with pytest.raises(Damaged, match="no checkpoint of tensors"):
            SavedState(path, verify(path))
    assert not (tmp_path / "bomb-went-off").exists()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    text = manifest({"../../etc/passwd": FileEntry(bytes=1, sha256="0" * 64)}).model_dump_json()
    with pytest.raises(Damaged, match="no plain file name"):
        parse_manifest(text, "step-00000004")


def test_an_older_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="another version"):
        parse_manifest(json.dumps({"format": "addp-checkpoint-1", "step": 4}), "step-00000004")


def test_retention_keeps_the_newest_and_the_permanent_ones(tmp_path: Path) -> None:
    section = CheckpointSection(every=1, keep=2, permanent_every=4)
    assert expired(range(1, 10), 9, section) == [6, 5, 3, 2, 1]  # 9 and 7 stay, 4 and 8 for good
    assert expired([1, 2, 3, 12], 3, section) == [1]  # 12 belongs to a past that was refused
    for step in range(1, 8):
        make(tmp_path, [5], step)
    assert prune(tmp_path, 7, section) == [5, 3, 2, 1]
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["4", "6", "7"]
