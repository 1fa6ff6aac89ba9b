"""Sources as people have them: class folders, ImageNet's tars, WebDataset shards; in a folder and
on S3."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from scipy.io import savemat

from data_pipeline.images.class_names import ClassNames, read_class_names, read_devkit, read_labels
from data_pipeline.images.images import BadImage, read_image
from data_pipeline.images.sources import open_source, split_of
from data_pipeline.images.tar_members import members
from data_pipeline.storage import open_store
from model.errors import ADDPError, DataError
from tests.tars import add, jpeg, tar_of

WORDNET = ("n01440764", "n01443537", "n02084071")


@pytest.fixture(scope="module")
def train_tar() -> bytes:
    """Make a tar like ILSVRC2012_img_train.tar, with its classes out of order."""
    classes = {w: {f"{w}_{i}.JPEG": jpeg(i) for i in range(2 + k)} for k, w in enumerate(WORDNET)}
    return tar_of({f"{w}.tar": tar_of(classes[w]) for w in reversed(WORDNET)})


@pytest.fixture(params=["folder", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "data")
        if request.param == "folder"
        else f"{request.getfixturevalue('bucket')}/data"
    )


def test_imagenet_train(folder: str, train_tar: bytes) -> None:
    open_store(folder).create("ILSVRC2012_img_train.tar", train_tar)
    source = open_source(f"{folder}/ILSVRC2012_img_train.tar")
    images = list(source.images())
    assert source.kind == "imagenet-train" and source.classes.names == WORDNET
    assert sorted((p.id, p.label) for p in images) == [
        (f"{w}/{w}_{i}.JPEG", k) for k, w in enumerate(WORDNET) for i in range(2 + k)
    ]
    for p in images:  # read in place, out of the tar in the tar
        assert read_image(source.store, p).size == (20 + int(p.id[-6]), 20)


def test_imagenet_val(folder: str, tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3, 4)]
    open_store(folder).create(
        "val.tar", tar_of({n: jpeg(i) for i, n in reversed(list(enumerate(names)))})
    )
    labels = tmp_path / "labels.txt"
    labels.write_text("n02084071\nn01440764\nn01443537\nn01440764\n")
    source = open_source(f"{folder}/val.tar", labels=read_labels(labels))
    assert source.kind == "imagenet-val"
    assert [(p.id, p.label) for p in source.images()] == list(zip(names, (2, 0, 1, 0), strict=True))
    with pytest.raises(DataError, match=r"has 4 images, but 3 labels"):
        open_source(f"{folder}/val.tar", labels=read_labels(labels)[:3])
    # Without labels it is taken for WebDataset.
    with pytest.raises(DataError, match=r"has no label.* from --devkit or --labels"):
        list(open_source(f"{folder}/val.tar").images())


def test_devkit(tmp_path: Path) -> None:
    fields = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object)]
    rows = [
        (1, "n02119789", "kit fox, Vulpes macrotis"),
        (2, "n02100735", "English setter"),
        (3, "n01440764", "tench"),
    ]
    folder = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n1\n")
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz") as tar:
        tar.add(folder.parent, "ILSVRC2012_devkit_t12")
    for path in (folder.parent, tmp_path / "devkit.tar.gz"):
        names, labels = read_devkit(path)
        assert names.names == ("n01440764", "n02100735", "n02119789") and names.titles[0] == "tench"
        assert labels == ["n01440764", "n02119789", "n02100735", "n02119789"]
    with pytest.raises(DataError, match="is not ImageNet's development kit"):
        read_devkit(tmp_path)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_webdataset_shards(folder: str, tmp_path: Path, label: str) -> None:
    for shard in range(2):
        file = tmp_path / "shard.tar"
        with webdataset.TarWriter(str(file)) as writer:
            for i in range(5):
                value = i if label == "cls" else {"label": i, "caption": "x"}
                writer.write(
                    {"__key__": f"pic{shard}{i}", "jpg": jpeg(i), label: value, "txt": "unused"}
                )
        open_store(folder).create(f"images-{shard:04d}.tar", file.read_bytes())
    source = open_source(folder)
    images = list(source.images())
    assert source.kind == "webdataset" and source.classes.names == ("0", "1", "2", "3", "4")
    assert [p.label for p in images] == [0, 1, 2, 3, 4] * 2
    assert images[0].id == "images-0000.tar/pic00.jpg"
    assert [read_image(source.store, p).size[0] for p in images] == [20, 21, 22, 23, 24] * 2
    named = open_source(folder, ClassNames(("a", "b", "c")))
    with pytest.raises(DataError, match=r"label 3, but 3 classes are named"):
        list(named.images())


def test_labels_that_are_none(tmp_path: Path) -> None:
    wrong: dict[str, list[bytes]] = {
        "cls": [
            b"cat",
            b"-1",
            b"1.9",
            b"1_0",
            "\u0663".encode(),
            b"",
            b"1\n2",
            b"9" * 10,
            b" " * 65,
        ],
        "json": [
            b'{"label": %s}' % value
            for value in (
                b"1.9",
                b"1.0",
                b"true",
                b"[1]",
                b"Infinity",
                b"NaN",
                b'"1.9"',
                b"-1",
                b"1e3",
                b"9" * 5000,
            )
        ],
    }
    wrong["json"] += [b"[" * 100_000, b"\xff", b"{", b'{"label": 1}' + b" " * 2**20]
    store = open_store(tmp_path)
    for extension, contents in wrong.items():
        for content in contents:
            store.replace("x.tar", tar_of({"a.jpg": jpeg(0), f"a.{extension}": content}))
            with pytest.raises(
                DataError, match=rf"x\.tar: a\.{extension} (is no label|has [0-9,]+ bytes)"
            ):
                print(content[:20], list(open_source(tmp_path).images()))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.jpg", 0), ("a.jpg", 1), ("a.cls", 0)], "a has two members .jpg"),
        ([("a.jpg", 0), ("a.cls", 0), ("a.cls", 1)], "a has two members .cls"),
        ([("a.jpg", 0), ("a.png", 1), ("a.cls", 0)], r"a has several images \(.jpg, .png\)"),
        (
            [("a.1.jpg", 0), ("a.2.jpg", 1), ("a.cls", 0)],
            "a has no image, only .1.jpg; a key ends at the first dot",
        ),
        (
            [("a.avif", 0), ("a.cls", 0), ("b.jpg", 1), ("b.cls", 1)],
            "a has no image, only a label; known are .bmp, ",
        ),
        ([("a.jpg", 0), ("b.jpg", 0), ("a.cls", 0), ("b.cls", 0)], "a has no label"),
        ([("a.txt", 0)], "x.tar holds no images"),
        ([("a.jpg", 0), ("a.cls", 1), ("a.json", 2)], "a has two labels: 1 in .cls, 2 in .json"),
        ([("a.jpg", 0), ("a.cls", 7_000_000)], "has label 7000000, but 1,000,000 classes"),
    ],
)
def test_keys_that_are_not_one_image(
    tmp_path: Path, files: list[tuple[str, int]], words: str
) -> None:
    """Each of these was once silently taken for one image or none."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, number in files:
            content = b'{"label": %d}' % number if name.endswith("json") else b"%d" % number
            add(tar, name, content if name.endswith(("cls", "json")) else jpeg(number))
    with pytest.raises(DataError, match=words):
        list(open_source(tmp_path / "x.tar").images())


def test_other_fields_of_a_key(tmp_path: Path) -> None:
    """A mask is not the image; hidden files and keys without image and label are nothing."""
    files = {
        "d.x/._a.jpg": b"",
        "d.x/a.jpg": jpeg(0),
        "d.x/a.seg.png": jpeg(1),
        "d.x/a.txt": b"",
        "d.x/a.cls": b" 1\n",
        "d.x/a.json": b'{"label": null, "cls": "1"}',
        "readme.txt": b"",
        "b.json": b'{"caption": ""}',
        ".cls": b"x",
    }
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (image,) = open_source(tmp_path).images()
    assert (image.id, image.label) == ("x.tar/d.x/a.jpg", 1)


def test_links_in_folders(tmp_path: Path) -> None:
    """Links are followed to files and folders, but never round, and never into a pipe or a
    device."""
    kept = tmp_path / "kept" / "deep"
    kept.mkdir(parents=True)
    (kept / "0.jpg").write_bytes(jpeg(0))
    cat = tmp_path / "images" / "cat"
    cat.mkdir(parents=True)
    (cat / "link.jpg").symlink_to(kept / "0.jpg")
    (cat.parent / "dog").symlink_to(kept.parent)
    (kept / "round").symlink_to(kept.parent)
    (cat / "self.jpg").symlink_to("self.jpg")
    (cat / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(cat / "pipe.jpg")
    (cat / "new\nline.jpg").write_bytes(b"")
    source = split_of(cat.parent)
    reasons = {}
    for image in source.images:
        try:
            reasons[image.id] = str(read_image(source.store, image).size)
        except BadImage as error:
            reasons[image.id] = error.reason
    assert reasons == {
        "cat/link.jpg": "(20, 20)",
        "dog/deep/0.jpg": "(20, 20)",
        "cat/self.jpg": "gone since it was listed",
        "cat/zero.jpg": "no regular file",
        "cat/pipe.jpg": "no regular file",
        "cat/new\nline.jpg": "empty file",
    }
    (cat / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/\\udcff.jpg' is not UTF-8"):
        split_of(cat.parent)


def test_class_folders(images: Path, bucket: str) -> None:
    everything = split_of(images)
    assert everything.classes == ("ellipse", "line", "rectangle") and len(everything.images) == 120
    train, val = split_of(images, "train"), split_of(images, "val")
    assert {p.id for p in train.images} | {p.id for p in val.images} == {
        p.id for p in everything.images
    }
    assert not {p.id for p in train.images} & {p.id for p in val.images}
    assert everything.images[0].id == "ellipse/000.png" and everything.images[-1].label == 2
    for image in val.images:
        open_store(bucket).create(f"p/{image.id}", (images / image.id).read_bytes())
    stored = split_of(f"{bucket}/p")
    assert stored.images == val.images and stored.classes == val.classes
    assert read_image(stored.store, stored.images[0]).size == (24, 20)


@pytest.mark.parametrize(
    ("folder", "words"),
    [(None, "there is no folder"), ("", "neither class folders nor tars"), ("cats", "no images")],
)
def test_folders_without_images(tmp_path: Path, folder: str | None, words: str) -> None:
    root = tmp_path / "images"
    if folder is not None:
        (root / folder).mkdir(parents=True)
    with pytest.raises(ADDPError, match=words):
        list(open_source(root).images())


def test_empty_split(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match="split"):
        split_of(tmp_path, "val", 0.0)


def test_class_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("rectangle a box\nellipse\n\n line  thin\n")
    names = read_class_names(file)
    assert (
        names == ClassNames(("rectangle", "ellipse", "line"), ("a box", "", "thin"))
        and names.label("line") == 2
    )
    with pytest.raises(DataError, match="'circle' is not among the 3 named"):
        names.label("circle")
    with pytest.raises(DataError, match="twice"):
        ClassNames(("a", "a"))
    with pytest.raises(DataError, match="cannot read"):
        read_class_names(tmp_path / "none.txt")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members(tmp_path: Path, format: int) -> None:
    files = {"a" * 90 + str(i): b"%d" % i * (i * 700) for i in range(6)}
    content = tar_of(files, format)
    (tmp_path / "x.tar").write_bytes(content)
    store = open_store(tmp_path)
    listed = list(members(store, "x.tar", len(content)))
    assert {m.name: store.read("x.tar", m.offset, m.size) for m in listed} == files


def test_a_damaged_tar_does_not_end_early(tmp_path: Path) -> None:
    """Python's tarfile takes a damaged header for the end; so would a cut between members pass
    unseen."""
    content = tar_of({f"m{i}": bytes([i]) * 700 for i in range(8)}, tarfile.USTAR_FORMAT)
    store = open_store(tmp_path)
    stride = 512 + 1024
    damages = {
        "flipped": content[: 3 * stride + 5] + b"\xff" + content[3 * stride + 6 :],
        "cut between members": content[: 4 * stride],
        "cut in a header": content[: 4 * stride + 100],
        "cut in a member": content[: 4 * stride + 700],
        "no tar": b"x" * 2000,
        "compressed": __import__("gzip").compress(content),
    }
    for name, damaged in damages.items():
        store.replace("x.tar", damaged)
        with pytest.raises(ADDPError, match=r"x\.tar"):
            print(name, len(list(members(store, "x.tar", len(damaged)))))


def test_json_labels_of_other_forms(tmp_path: Path) -> None:
    fields = {"a": {"cls": 2}, "b": {"label": "1"}, "c": {"other": 1}}
    files: dict[str, bytes] = {}
    for key, value in fields.items():
        files |= {f"{key}.png": jpeg(0), f"{key}.json": json.dumps(value).encode()}
    (tmp_path / "x.tar").write_bytes(tar_of(files))
    listing = open_source(tmp_path / "x.tar").images()
    assert [next(listing).label, next(listing).label] == [2, 1]
    with pytest.raises(DataError, match="c has no label"):
        next(listing)
