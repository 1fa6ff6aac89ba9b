"""How a source is named: a folder, a tar, a list of tars in braces."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.images.location import absolute, images_store, locate, tars_in
from data_pipeline.images.sources import open_source
from data_pipeline.storage import ObjectMissing, StorageError, open_store
from model.errors import DataError


@pytest.mark.parametrize(
    ("source", "url", "tars"),
    [
        ("images", "images", ()),
        ("/a/x.tar", "/a", ("x.tar",)),
        ("x.tar", ".", ("x.tar",)),
        ("x-{08..11}.tar", ".", ("x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar")),
        ("/x-{0..4..2}.tar", "/", ("x-0.tar", "x-2.tar", "x-4.tar")),
        ("/a/b/{c/x-{0,1},y}.tar", "/a/b", ("c/x-0.tar", "c/x-1.tar", "y.tar")),
    ],
)
def test_where_a_source_lies(
    source: str, url: str, tars: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate(source)
    assert (location.store.url, location.tars) == (url, tars)
    if tars:
        with pytest.raises(StorageError, match="there is no "):
            tars_in(location)
    location = locate(absolute(source))
    assert (Path(location.store.url), location.tars) == (tmp_path / url, tars)
    assert absolute("s3://b/x") == "s3://b/x"


def test_on_s3(bucket: str) -> None:
    for name in ("p/a-0.tar", "p/a-1.tar", "p/a-10.tar"):
        open_store(bucket).create(name, b"x")
    location = locate(f"{bucket}/p/a-{{0..1}}.tar")
    assert location.store.url == f"{bucket}/p" and [e.name for e in tars_in(location)] == [
        "a-0.tar",
        "a-1.tar",
    ]
    with pytest.raises(
        ObjectMissing, match=r"there is no tar s3://.*/p/a-2\.tar, nor 7 others named with it"
    ):
        tars_in(locate(f"{bucket}/p/a-{{0..9}}.tar"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x-{0..99999999999999}.tar", "up to 100,000,000,000,000 names; give at most 100,000"),
        ("x-{0..999}{0..999}.tar", "up to 1,000,000 names"),
        ("x-" + "{0,1}" * 40 + ".tar", "up to "),
        ("x-{{0,1}" + "{a..z}" * 9 + "}.tar", "up to "),
        ("{" * 5000, "5,000 characters"),
        ("x-{0..3.tar", "the braces of this list do not match"),
        ("x-{0..3}.tar.gz", "a list in braces names tars, and x-0.tar.gz is none"),
        ("{a,..}/x.tar", "names tars, and ../x.tar is none"),
        ("s3://b-{0,1}/x.tar", "the braces must stand behind the bucket"),
    ],
)
def test_lists_that_are_none(source: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        locate(source)


def test_a_folder_with_braces_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "{a,b}"
    folder.mkdir()
    assert locate(folder).store.url == str(folder)


def test_where_the_images_of_a_plan_lie(tmp_path: Path) -> None:
    for name in ("x-0.tar", "x-1.tar"):
        (tmp_path / name).write_bytes(b"x")
    planned = ("x-1.tar", "x-0.tar")
    for source in (tmp_path, tmp_path / "x-{0..3}.tar"):
        assert images_store(str(source), planned).url == str(tmp_path)
    with pytest.raises(
        DataError, match=r"x-0\.tar is not what was planned: the plan's images lie in x-1\.tar"
    ):
        images_store(f"{tmp_path}/x-0.tar", planned)
    with pytest.raises(DataError, match=r"the plan's images lie in files of a folder"):
        images_store(f"{tmp_path}/x-0.tar", ())
    (tmp_path / "x-1.tar").unlink()
    with pytest.raises(ObjectMissing, match=r"there is no tar .*x-1\.tar; check the path"):
        images_store(str(tmp_path), planned)
    with pytest.raises(StorageError, match="there is no folder"):
        open_source(tmp_path / "none" / "x.tar")
