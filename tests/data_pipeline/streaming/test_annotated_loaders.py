"""Loaders of annotated images: their order, their augmentation, and what replaces a bad sample."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.annotations.ade20k import open_ade20k
from data_pipeline.annotations.coco import read_coco
from data_pipeline.annotations.recipes import DetectionRecipe, SegmentationRecipe
from data_pipeline.images.images import BadImage
from data_pipeline.storage import open_store
from data_pipeline.streaming.detection_loader import DetectionLoader, DetectionSource
from data_pipeline.streaming.segmentation_loader import SegmentationLoader
from model.errors import ConfigError, DataError
from tests.data_pipeline.annotations.small_data import challenge, coco, png, with_document, write

MASK = "annotations/training/ADE_train_{:08d}.png"


def segmentation(root: Path, batch: int = 4, **options: Any) -> SegmentationLoader:
    source = open_ade20k(root, "training")
    recipe = SegmentationRecipe(size=32, short_side=32, long_side=128)
    return SegmentationLoader(source, recipe, global_batch=batch, seed=1, **options)


def detection(root: Path, batch: int = 2, **options: Any) -> DetectionLoader:
    source = DetectionSource(open_store(root), read_coco(root, "train"))
    recipe = DetectionRecipe(size=64)
    return DetectionLoader(source, recipe, global_batch=batch, seed=1, **options)


def test_crops_are_a_function_of_the_step(tmp_path: Path) -> None:
    """Not of threads, of slices, nor of what was read ahead."""
    root = write(tmp_path, challenge(9))
    first = segmentation(root)
    batches = [first.batch(step, 0, 4) for step in range(5)]
    assert batches[0].images.shape == (4, 3, 32, 32) and batches[0].labels.shape == (4, 32, 32)
    assert [batch.start for batch in batches] == [0, 4, 8, 12, 16]
    resumed = segmentation(root, threads=5)
    for offset in (2, 0):
        half = resumed.batch(3, offset, 2)
        assert half.start == 12 + offset
        assert np.array_equal(half.images, batches[3].images[offset : offset + 2])
        assert np.array_equal(half.labels, batches[3].labels[offset : offset + 2])
    assert not np.array_equal(batches[0].images, batches[2].images)  # the same images, of epoch 1


def test_instances_are_a_function_of_the_step(tmp_path: Path) -> None:
    root = write(tmp_path, with_document(*coco()))
    batches = [detection(root).batch(step, 0, 2) for step in range(4)]
    resumed = detection(root, threads=5).batch(3, 1, 1)
    assert resumed.images.shape == (1, 3, 64, 64) and resumed.start == 7
    assert np.array_equal(resumed.images[0], batches[3].images[1])
    expected = batches[3].instances[1]
    assert all(map(np.array_equal, resumed.instances[0], expected))
    ids = [found.image_id for batch in batches for found in batch.instances]
    assert sorted(ids[:4]) == sorted(ids[4:]) == [97, 98, 99, 100]
    assert {int(label) for b in batches for found in b.instances for label in found.labels} == {
        0,
        1,
    }


def test_the_next_image_takes_the_place_of_a_bad_one(tmp_path: Path) -> None:
    """It is the same one in each run, and its crop is that of the place."""
    good = segmentation(write(tmp_path / "good", challenge(6)), batch=6)
    expected = good.batch(0, 0, 6)
    rows = good.order.locate(0, 0, 6).row.tolist()
    files = {**challenge(6), MASK.format(3): b"no mask"}
    bad = segmentation(write(tmp_path / "bad", files), batch=6, threads=3)
    batch = bad.batch(0, 0, 6)
    place = rows.index(3)
    assert list(bad.bad) == [3]
    same = [i for i in range(6) if np.array_equal(batch.images[i], expected.images[i])]
    assert same == [i for i in range(6) if i != place]
    again = segmentation(tmp_path / "bad", batch=6).batch(0, place, 1)
    assert np.array_equal(again.images[0], batch.images[place])


def test_too_many_bad_images_end_it(tmp_path: Path) -> None:
    files = {**challenge(6), MASK.format(3): b"no mask", MASK.format(4): b""}
    with pytest.raises(DataError, match="more than 1 images cannot be read"):
        segmentation(write(tmp_path / "two", files), batch=6).batch(0, 0, 6)
    alone = write(tmp_path / "alone", {**challenge(1), MASK.format(0): b""})
    with pytest.raises(DataError, match="more than 0 images cannot be read"):
        segmentation(alone, batch=1).batch(0, 0, 1)


def test_a_bad_file_of_several_records_ends_it(tmp_path: Path) -> None:
    """It counts for each of them; or the search for a substitute would go round."""
    files, document = coco(3)
    for record in document["images"]:
        record.update(file_name="000000000000.png", width=64)
    document["annotations"] = [one for one in document["annotations"] if not one["iscrowd"]]
    files["train2017/000000000000.png"] = b"no image"
    root = write(tmp_path, with_document(files, document))
    with pytest.raises(DataError, match="more than 1 images cannot be read"):
        detection(root).batch(0, 0, 2)


def test_an_image_of_another_size_than_its_record_is_bad(tmp_path: Path) -> None:
    files, document = coco()
    files["train2017/000000000000.png"] = png(np.zeros((64, 48, 3), np.uint8))
    root = write(tmp_path, with_document(files, document))
    loader = detection(root, batch=4)
    ids = [found.image_id for found in loader.batch(0, 0, 4).instances]
    assert set(ids) == {97, 98, 99} and list(loader.bad) == [3]
    source = DetectionSource(open_store(root), read_coco(root, "train"))
    with pytest.raises(BadImage, match="48 x 64 pixels, but its annotations are for 64 x 48"):
        source.image(3)


def test_what_detection_needs_is_said_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, document = coco()
    for record in document["annotations"]:
        record["iscrowd"] = 1
    root = write(tmp_path / "crowds", with_document(files, document))
    with pytest.raises(DataError, match=r"no image in .* has an annotation of a single thing"):
        detection(root)
    for name in ("pycocotools", "pycocotools.mask"):  # it may have been imported
        monkeypatch.setitem(sys.modules, name, None)
    root = write(tmp_path / "coco", with_document(*coco()))
    with pytest.raises(ConfigError, match=r"pip install 'addp\[detect\]'"):
        detection(root)
