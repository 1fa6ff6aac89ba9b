"""A set of scenes is read back here without any of the code that wrote it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.scenes.making import make_scenes
from data_pipeline.scenes.settings import SceneSettings
from data_pipeline.storage import StorageError
from model.errors import ConfigError
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[3]
CLASSES = ("flags", "people-body", "smileys-emotion")
SETTINGS = SceneSettings(training=33, validation=3, size=64, seed=1, classes=CLASSES)
SPLITS = {"training": ("ADE_train", 33, "train2017"), "validation": ("ADE_val", 3, "val2017")}


def contents(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "new" / "set"
    made = make_scenes(out, SETTINGS, processes=2)
    assert made.composed == 36 and made.emoji > 90 and made.scenes_per_second > 0
    return out


@pytest.fixture(scope="module")
def whole(out: Path) -> dict[str, bytes]:
    return contents(out)


def decoded(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    height, width = segmentation["size"]
    flat: list[bool] = []
    for i, count in enumerate(segmentation["counts"]):
        flat += [i % 2 == 1] * count
    return np.array(flat).reshape(width, height).T


def test_coco_and_ade20k_tell_the_same_of_the_same_pictures(out: Path) -> None:
    seen: dict[str, set[str]] = {}
    ids: list[int] = []
    for split, (prefix, count, folder) in SPLITS.items():
        file = out / "coco" / "annotations" / f"instances_{folder}.json"
        coco = json.loads(file.read_text())
        assert [c["name"] for c in coco["categories"]] == list(CLASSES)
        assert [c["id"] for c in coco["categories"]] == [1, 2, 3]
        assert {i["license"] for i in coco["images"]} == {coco["licenses"][0]["id"]}
        assert "CC BY-SA 4.0" in coco["licenses"][0]["name"] and "OpenMoji" in str(coco["info"])
        assert len(coco["images"]) == len(list((out / "coco" / folder).iterdir())) == count
        ids += [item["id"] for item in coco["images"]]
        names = sorted((out / "ade20k" / "images" / split).iterdir())
        assert [n.name for n in names] == [f"{prefix}_{i:08d}.jpg" for i in range(1, count + 1)]
        for image, picture in zip(coco["images"], names, strict=True):
            assert picture.samefile(out / "coco" / folder / image["file_name"])
            labels = Image.open(out / "ade20k" / "annotations" / split / f"{picture.stem}.png")
            assert labels.mode == "L" and labels.size == (image["width"], image["height"])
            with Image.open(picture) as opened:
                assert opened.format == "JPEG" and opened.size == labels.size
            pixels = np.array(labels)
            painted = np.full_like(pixels, len(CLASSES) + 1)  # the background
            for found in (a for a in coco["annotations"] if a["image_id"] == image["id"]):
                mask = decoded(found["segmentation"])
                assert (painted[mask] == len(CLASSES) + 1).all()  # no two masks meet
                painted[mask] = found["category_id"]
                rows, columns = np.nonzero(mask)
                left, top, width, height = found["bbox"]
                assert (left, top) == (columns.min(), rows.min())
                assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
                assert found["area"] == mask.sum() and found["iscrowd"] == 0
                seen.setdefault(split, set()).add(found["emoji"])
            assert (painted == pixels).all()
        annotation_ids = [a["id"] for a in coco["annotations"]]
        assert len(set(annotation_ids)) == len(annotation_ids)
    assert len(set(ids)) == 36
    assert not seen["training"] & seen["validation"]


def test_tables_of_ade20k(out: Path) -> None:
    header, *lines = (out / "ade20k" / "objectInfo150.txt").read_text().splitlines()
    assert header.split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"]
    rows = [line.split("\t") for line in lines]
    assert [row[4] for row in rows] == [*CLASSES, "background"]
    shown = {
        split: [
            np.unique(np.array(Image.open(p)), return_counts=True)
            for p in sorted((out / "ade20k" / "annotations" / split).iterdir())
        ]
        for split in SPLITS
    }
    for label, row in enumerate(rows, 1):
        assert int(row[0]) == label
        for split, column in (("training", 2), ("validation", 3)):
            assert int(row[column]) == sum(label in values for values, _ in shown[split])
        pixels = sum(
            int(counts[values == label].sum())
            for split in SPLITS
            for values, counts in shown[split]
        )
        assert float(row[1]) == pytest.approx(pixels / (36 * 64 * 64), abs=6e-5)
    kinds = (out / "ade20k" / "sceneCategories.txt").read_text().splitlines()
    assert len(kinds) == 36 and kinds[0].split()[0] == "ADE_train_00000001"


def test_part_maps_lie_where_emoji_do(out: Path) -> None:
    names = dict(
        line.split("\t") for line in (out / "ade20k" / "partInfo.txt").read_text().splitlines()
    )
    assert names == {"1": "color", "2": "line", "3": "hair", "4": "skin"}
    for path in (out / "ade20k" / "annotations_parts" / "training").iterdir():
        parts = np.array(Image.open(path))
        labels = np.array(Image.open(out / "ade20k" / "annotations" / "training" / path.name))
        assert ((parts > 0) == (labels <= len(CLASSES))).all() and parts.max() <= 4


def test_licence_and_sheet(out: Path) -> None:
    text = (out / "LICENSE.txt").read_text()
    assert "OpenMoji" in text and "by-sa/4.0" in text
    assert min(Image.open(out / "contact-sheet.png").size) > 500


def test_the_number_of_processes_changes_no_byte(whole: dict[str, bytes], tmp_path: Path) -> None:
    make_scenes(tmp_path, SETTINGS, processes=1)
    assert contents(tmp_path) == whole


def test_what_is_whole_is_skipped_and_what_is_damaged_is_made_again(
    out: Path, whole: dict[str, bytes]
) -> None:
    pictures = out / "ade20k" / "images" / "training"
    kept, cut = pictures / "ADE_train_00000033.jpg", pictures / "ADE_train_00000002.jpg"
    age = kept.stat().st_mtime_ns
    # Whoever writes through one name writes through both.
    cut.write_bytes(cut.read_bytes()[:100])
    (out / "coco" / "train2017" / "000000000017.jpg").unlink()
    (out / "records" / "validation-00000.json").write_text('{"scenes": [')
    (out / "coco" / "annotations" / "instances_val2017.json").unlink()
    (pictures / "ADE_train_00000001.jpg.123.tmp").touch()
    assert make_scenes(out, SETTINGS, processes=1).composed == 16 + 16 + 3
    assert contents(out) == whole and kept.stat().st_mtime_ns == age
    assert make_scenes(out, SETTINGS, processes=1).composed == 0


def test_a_killed_command_goes_on(whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--scenes", "33", "--held-out", "3", "--size", "64", "--seed", "1"]
    chosen = ["--classes", ",".join(CLASSES), "--processes", "2"]
    command = [sys.executable, "-m", "cluster.cli", "scenes", out, *options, *chosen]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not list(out.glob("ade20k/images/training/*.jpg")):
            assert process.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert workers and not alive
    assert contents(out) != whole
    made = make_scenes(out, SETTINGS, processes=1)
    assert made.composed > 0 and contents(out) == whole


def refused(out: Path, words: str, **changes: object) -> None:
    before = contents(out) if out.is_dir() else {}
    with pytest.raises(ConfigError, match=words) as caught:
        make_scenes(out, SETTINGS.model_copy(update=changes), processes=1)
    assert str(out) in str(caught.value)
    assert not out.is_dir() or contents(out) == before


def test_folders_that_will_not_do(out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "it is a file")
    refused(tmp_path, "holds something else than scenes")
    refused(out, "scenes with seed = 1, not 2", seed=2)
    refused(out, "training = 33, not 34", training=34)
    refused(out, "classes = flags,people-body,smileys-emotion, not flags", classes=("flags",))
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(out, "another process makes scenes")
    os.close(handle)


def test_claims_that_are_damaged_or_of_other_versions(out: Path, tmp_path: Path) -> None:
    claim = json.loads((out / "scenes.json").read_text())
    (tmp_path / "scenes.json").write_text("[]")
    refused(tmp_path, "scenes.json")
    claim["drawn_by"]["resvg-py"] = "0.0.1"
    (tmp_path / "scenes.json").write_text(json.dumps(claim))
    refused(tmp_path, "was begun with resvg-py 0.0.1, and this is")


def test_something_in_the_way_is_named(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"training": 1, "validation": 1})
    make_scenes(tmp_path, settings, processes=1)
    (tmp_path / "coco" / "val2017" / "000001000001.jpg").unlink()
    (tmp_path / "coco" / "val2017" / "000001000001.jpg").mkdir()
    with pytest.raises(StorageError, match=r"000001000001\.jpg"):
        make_scenes(tmp_path, settings, processes=1)
