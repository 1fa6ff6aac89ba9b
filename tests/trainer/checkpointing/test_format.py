"""The format of checkpoints: what is written is read back, whatever the division, and nothing else
is taken for one."""

from __future__ import annotations

import json
import math
import os
import pickle
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer.checkpointing.catalog import LocalCatalog
from trainer.checkpointing.format import (
    MANIFEST,
    Damaged,
    FileEntry,
    Manifest,
    NoValidCheckpoint,
    manifest_bytes,
    parse_manifest,
    rank_file,
    read_manifest,
    verify_file,
)
from trainer.checkpointing.retention import expired, prune
from trainer.checkpointing.snapshot import snapshot, write_snapshot
from trainer.config.schema import CheckpointSection
from trainer.run_folder import RunFolder


def manifest(files: dict[str, FileEntry], step: int = 4) -> Manifest:
    return Manifest(
        step=step,
        world_size=len(files),
        zero_stage=1,
        run_identity={},
        parameters={"w": [5, 2]},
        export_prefix="",
        state_keys=["weights"],
        applied=step,
        scaler={},
        skipped=[],
        trainer_state={},
        files=files,
    )


def make(folder: RunFolder, cuts: list[int], step: int = 4) -> Path:
    """The folder of a checkpoint of one parameter 0 .. 9, cut into pieces at `cuts`, one piece a
    file."""
    values, path = torch.arange(10.0), LocalCatalog(folder).folder(step)
    borders = [0, *sorted(cuts), 10]
    files = {}
    for rank, (a, b) in enumerate(pairwise(borders)):
        content = snapshot([(f"weights/w@{a}", values[a:b])], None)
        files[rank_file(rank)] = write_snapshot(path / rank_file(rank), content)
    (path / MANIFEST).write_bytes(manifest_bytes(manifest(files, step)))
    return path


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), max_size=4, unique=True), st.integers(0, 9), st.integers(1, 10))
def test_any_range_is_read_from_any_division(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, length: int
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("division"))
    make(folder, cuts)
    length = min(length, 10 - start)
    with LocalCatalog(folder).saved_state(4) as state:
        values = state.read("weights", "w", start, length)
    assert values.tolist() == list(range(start, start + length))


def test_files_are_plain_safetensors_of_every_dtype(tmp_path: Path) -> None:
    tensors = {
        "bool": torch.tensor([True, False, True]),
        "long": torch.arange(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "matrix": torch.randn(2, 3),
        "double": torch.rand(2, dtype=torch.float64),
    }
    stated = write_snapshot(tmp_path / "a.safetensors", snapshot(tensors.items(), None))
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[k], v) for k, v in tensors.items()
    )
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
    folder = RunFolder(tmp_path)
    catalog, file = LocalCatalog(folder), make(folder, [5]) / name
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    else:
        if fault == "flip":
            content[len(content) // 2 + 1] ^= 0x80
        file.write_bytes(
            {"cut": content[:-3], "empty": b"", "longer": content + b"x"}.get(fault, bytes(content))
        )
    with pytest.raises(Damaged, match="step-00000004"):
        catalog.verify(4)
    with pytest.raises(NoValidCheckpoint, match="none is valid"):
        catalog.newest_valid()
    make(folder, [5], step=2)
    assert catalog.newest_valid() == 2


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch bomb-went-off",)


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose manifest vouches for it."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path)
    catalog, path = LocalCatalog(folder), make(folder, [])
    file = path / "rank-00000.safetensors"
    for bomb in (pickle.dumps(_Bomb()), b"PK\x03\x04" + pickle.dumps(_Bomb())):
        file.write_bytes(bomb)
        with pytest.raises(Damaged):
            catalog.verify(4)
        import hashlib

        entry = FileEntry(bytes=len(bomb), sha256=hashlib.sha256(bomb).hexdigest())
        (path / MANIFEST).write_text(manifest({file.name: entry}).model_dump_json())
        assert catalog.verify(4).files
        with pytest.raises(Damaged, match="no checkpoint of tensors"), catalog.saved_state(4):
            pass
    assert not (tmp_path / "bomb-went-off").exists()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    text = manifest({"../../etc/passwd": FileEntry(bytes=1, sha256="0" * 64)}).model_dump_json()
    with pytest.raises(Damaged, match="no plain file name"):
        parse_manifest(text, "step-00000004")


def test_no_flipped_bit_of_a_manifest_changes_what_it_says() -> None:
    """Also in the numbers of its state, of which any would do."""
    entry = FileEntry(bytes=1, sha256="0" * 64)
    written = manifest({"rank-00000.safetensors": entry})
    written.trainer_state = {
        "norms": [0.125, 3.5],
        "rows": [{"loss": math.nan, "norm": math.inf, "applied": False}],
    }
    text = bytearray(manifest_bytes(written))
    read = parse_manifest(bytes(text), "step-00000004")
    assert (
        repr(read.trainer_state) == repr(written.trainer_state)
        and read.fingerprint == written.fingerprint
    )
    for at in range(len(text)):
        for bit in range(8):
            text[at] ^= 1 << bit
            with suppress(Damaged):
                assert repr(parse_manifest(bytes(text), "step-00000004")) == repr(read), (at, bit)
            text[at] ^= 1 << bit


def test_a_manifest_of_an_earlier_version_has_no_digest_and_is_read() -> None:
    entry = FileEntry(bytes=1, sha256="0" * 64)
    text = manifest({"rank-00000.safetensors": entry}).model_dump_json(exclude={"digest"})
    read = parse_manifest(text, "step-00000004")
    assert read.digest == ""
    assert parse_manifest(manifest_bytes(read), "step-00000004").fingerprint == read.fingerprint


@pytest.mark.parametrize("name", [MANIFEST, "rank-00000.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    catalog, path = LocalCatalog(folder), make(folder, [])
    whole = catalog.verify(4)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(Damaged, match="no regular file"):
        catalog.index(whole if name != MANIFEST else catalog.manifest(4))
    with pytest.raises(Damaged, match="no regular file"):
        verify_file(path / name, FileEntry(bytes=0, sha256="0" * 64))


@pytest.mark.parametrize("seen", ["yesterday", None, [1], {}, True, -1, 1e12, math.nan])
def test_a_manifest_that_was_saved_at_no_time_is_damaged(seen: Any) -> None:
    text = manifest({"rank-00000.safetensors": FileEntry(bytes=1, sha256="0" * 64)})
    text.trainer_state = {"seen": seen}
    with pytest.raises(Damaged, match="which is no time"):
        parse_manifest(text.model_dump_json(), "step-00000004")


def test_a_manifest_of_endless_values_is_not_parsed(tmp_path: Path) -> None:
    path = make(RunFolder(tmp_path), [])
    with (path / MANIFEST).open("wb") as file:
        file.truncate(20 << 20)
    with pytest.raises(Damaged, match="larger than 16 MiB"):
        read_manifest(path)
    with pytest.raises(Damaged, match="larger than 16 MiB"):
        parse_manifest(b" " * (20 << 20), "step-00000004")


def test_an_older_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="another version"):
        parse_manifest(json.dumps({"format": "addp-checkpoint-1", "step": 4}), "step-00000004")


def test_retention_keeps_the_newest_and_the_permanent_ones(tmp_path: Path) -> None:
    section = CheckpointSection(every=1, keep=2, permanent_every=4)
    assert expired(range(1, 10), 9, section) == [6, 5, 3, 2, 1]  # 9 and 7 stay, 4 and 8 for good
    assert expired([1, 2, 3, 12], 3, section) == [1]  # 12 belongs to a past that was refused
    folder = RunFolder(tmp_path)
    for step in range(1, 8):
        make(folder, [5], step)
    assert prune(LocalCatalog(folder), 7, section) == [5, 3, 2, 1]
    assert sorted(path.name[-1] for path in folder.checkpoints.iterdir()) == ["4", "6", "7"]
