from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.annotations.ade20k import list_ade20k, open_ade20k
from data_pipeline.annotations.ade20k_classes import NUMBERS
from data_pipeline.annotations.segmentation_crop import IGNORE
from data_pipeline.images.images import BadImage
from data_pipeline.storage import open_store
from model.errors import DataError
from tests.data_pipeline.annotations.small_data import COLORS, challenge, png, regions, write
from tests.tars import tar_of

MASK = "annotations/training/ADE_train_{:08d}.png"


def test_the_challenges_layout(tmp_path: Path) -> None:
    source = open_ade20k(write(tmp_path, challenge()), "training")
    assert source.listing.classes == ("wall", "sky", "sea") and len(source) == 6
    for row in range(6):
        image, labels = source.read(row)
        values = regions(40, 60 + row)
        assert np.array_equal(np.asarray(image), COLORS[values])
        expected = np.array([IGNORE, 0, 1, 2], np.uint8)[values]
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)


@pytest.mark.parametrize("place", ["folder", "s3", "tar", "tar in a folder"])
def test_where_it_may_lie(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    files = {f"./ADEChallengeData2016/{name}": content for name, content in challenge(2).items()}
    url = f"{request.getfixturevalue('bucket')}/ade" if place == "s3" else str(tmp_path / "ade")
    store = open_store(url)
    if "tar" in place:
        store.create("all.tar", tar_of(files))
        url += "/all.tar" if place == "tar" else ""
    else:
        for name, content in files.items():
            store.create(name[2:], content)
    source = open_ade20k(url, "training")
    names = [pair.image.id[-12:] for pair in source.listing.images]
    assert names == ["00000000.png", "00000001.png"]
    assert source.read(1).labels.shape == (40, 61)
    plain = open_ade20k(write(tmp_path / "plain", challenge(2)), "training")
    assert source.read(1).image.tobytes() == plain.read(1).image.tobytes()


def test_the_full_data_set(tmp_path: Path) -> None:
    """Its classes, and its images reduced as the challenge's were."""
    numbers = [0, *itertools.chain.from_iterable(NUMBERS.values()), 1, 3687]
    coded = np.zeros((1, len(numbers), 3), np.uint8)
    coded[0, :, 0], coded[0, :, 1] = np.array(numbers) // 256 * 10, np.array(numbers) % 256
    folder = "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_{}"
    large = np.zeros((1024, 600, 3), np.uint8)
    large[512:] = (2978 // 256 * 10, 2978 % 256, 77)
    files = {
        folder.format("1.jpg"): png(np.zeros((1, len(numbers), 3), np.uint8)),
        folder.format("1_seg.png"): png(coded),
        folder.format("1_parts_1.png"): png(coded),
        folder.format("1/instance_000_ADE_train_1.png"): png(coded[..., 0]),
        folder.format("1.json"): b"{}",
        folder.format("2.jpg"): png(large),
        folder.format("2_seg.png"): png(large),
    }
    source = open_ade20k(write(tmp_path, files), "training")
    assert len(source) == 2 and len(source.listing.classes) == 150
    labels = source.read(0).labels[0].tolist()
    of_classes = [label for label, of in enumerate(NUMBERS.values()) for _ in of]
    assert labels == [IGNORE, *of_classes, IGNORE, IGNORE]
    image, labels = source.read(1)
    assert image.size == (512, 874) and labels.shape == (874, 512)
    assert (labels[:436] == IGNORE).all() and (labels[438:] == 0).all()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (png(regions(40, 61)), "60 x 40 pixels, but .* has 61 x 40"),
        (png(regions(40, 60) + np.uint8(1)), "its class 4 is not among the 3"),
        (png(COLORS[regions(40, 60)]), "mode RGB, not one byte each"),
        (png(regions(40, 60))[:-30], "truncated|broken"),
        (b"", "empty file"),
    ],
)
def test_what_is_wrong_with_an_annotation(mask: bytes, reason: str, tmp_path: Path) -> None:
    source = open_ade20k(write(tmp_path, {**challenge(3), MASK.format(0): mask}), "training")
    with pytest.raises(BadImage, match=reason):
        source.read(0)
    assert source.read(1).labels.shape == (40, 61)


def test_a_palette_and_255_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    values = regions(40, 60)
    values[0, 0] = 255
    files = {**challenge(3), MASK.format(0): png(values, palette=True)}
    labels = open_ade20k(write(tmp_path, files), "training").read(0).labels
    assert labels[0, 0] == IGNORE and labels[-1, -1] == 2


def test_images_and_annotations_that_miss_each_other_are_counted(tmp_path: Path) -> None:
    files = challenge(6)
    del files[MASK.format(2)]
    listing = list_ade20k(write(tmp_path, files), "training")
    assert len(listing.images) == 5
    assert dict(listing.problems.counts) == {"image without an annotation": 1}
    (tmp_path / "images/training/ADE_train_00000004.png").unlink()
    with pytest.raises(DataError, match=r"2 of 6 cannot be used, more than the limit .*_00000004"):
        list_ade20k(tmp_path, "training")
    assert len(list_ade20k(tmp_path, "training", bad_limit=0.5).images) == 4


@pytest.mark.parametrize(
    "name", ["images/training/ADE_train_00000001.jpg", f"copy/{MASK.format(1)}"]
)
def test_two_files_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    """One of them would be left out without a word."""
    write(tmp_path, {**challenge(2), name: b""})
    with pytest.raises(DataError, match=rf"two files for training/ADE_train_00000001, .*{name}"):
        list_ade20k(tmp_path, "training")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no objectInfo150.txt"),
        (b"Idx\tName\n", "is no list of classes"),
        (b"Idx\tName\n1\ta\n3\tb\n", "is no list of classes"),
        (b"Idx\tName\nx\ta\n", "is no list of classes"),
        (b"Idx\tName\n1\t , a\n", "a line with a name each"),
        (b"\xff", "is no list of classes"),
    ],
)
def test_the_list_of_classes_is_needed(content: bytes | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, {**challenge(1), "objectInfo150.txt": content or b""})
    if content is None:
        (tmp_path / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=message):
        list_ade20k(tmp_path, "training")


def test_data_without_the_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no annotated images of validation"):
        list_ade20k(write(tmp_path, challenge(1)), "validation")


def test_the_fingerprint_is_that_of_the_data(tmp_path: Path) -> None:
    first = list_ade20k(write(tmp_path / "a", challenge(3)), "training").fingerprint()
    assert list_ade20k(write(tmp_path / "b", challenge(3)), "training").fingerprint() == first
    assert list_ade20k(write(tmp_path / "c", challenge(2)), "training").fingerprint() != first
