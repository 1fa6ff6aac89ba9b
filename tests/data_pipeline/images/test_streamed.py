"""Images in tars that cannot be read by range."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.images.images import ImageEntry, read_image
from data_pipeline.images.location import absolute, images_store, locate, recorded
from data_pipeline.images.sources import open_source, split_of
from data_pipeline.images.streamed import StreamedShards, gathered, only_streams
from data_pipeline.storage import (
    ObjectMissing,
    SourceChanged,
    StorageError,
    StreamFailed,
    TooShort,
    open_store,
)
from data_pipeline.storage.http import HttpStore
from model.errors import ConfigError, DataError
from tests.tars import jpeg, link, tar_of
from tests.web_server import WebServer


def tars(count: int = 3) -> dict[str, bytes]:
    """Two images a tar; one of them is a link, and a label stands before its image."""
    return {
        f"x-{i}.tar": tar_of(
            {
                "a.jpg": jpeg(2 * i),
                "a.cls": b"%d" % i,
                "b.json": b'{"label": 1}',
                "b.jpg": link(b"1", "real.bin") if i == 1 else jpeg(2 * i + 1),
                "real.bin": jpeg(9),
            }
        )
        for i in range(count)
    }


def in_folder(folder: Path) -> str:
    for name, content in tars().items():
        open_store(folder).create(name, content)
    return f"{folder}/x-{{0..2}}.tar"


def of_names(images: list[ImageEntry]) -> list[ImageEntry]:
    """As if the tars had the names that those of a command have."""
    found = []
    for image in images:
        name = f"00000{image.object[2]}.tar"
        found.append(image._replace(id=image.id.replace(image.object, name), object=name))
    return found


def test_a_stream_is_listed_as_a_folder_is(tmp_path: Path, web: WebServer) -> None:
    expected = list(open_source(in_folder(tmp_path)).images())
    assert len(expected) == 6
    piped = open_source(f"pipe:cat {tmp_path}/x-{{0..2}}.tar", commands=True)
    assert list(piped.images()) == of_names(expected) and piped.classes.names == ("0", "1", "2")
    web.files = tars()
    for ranges in (True, False):
        web.ranges = ranges
        source = open_source(f"{web.url}/x-{{0..2}}.tar")
        assert list(source.images()) == expected
        assert isinstance(source, StreamedShards) == only_streams(source.store) == (not ranges)
        assert isinstance(source.store, HttpStore) and len(source.store.versions) == 3
    whole = [path for path, part, _ in web.asked if part is None]
    assert whole == ["/x-0.tar", "/x-1.tar", "/x-2.tar"]  # once each


def test_images_are_gathered_in_one_pass(tmp_path: Path) -> None:
    """In any order, by any number of threads, and only when one of them is read."""
    in_folder(tmp_path)
    count = f"pipe:i={{0..2}}; echo $i >> {tmp_path}/log; cat {tmp_path}/x-$i.tar"
    source = split_of(count, commands=True)
    assert (tmp_path / "log").read_text() == "0\n1\n2\n"
    assert [read_image(source.store, p).width for p in reversed(source.images)] == [
        25,
        24,
        29,
        22,
        21,
        20,
    ]
    assert (tmp_path / "log").read_text() == "0\n1\n2\n" * 2
    wanted = [p for p in source.images if p.object == "000001.tar"]
    some = gathered(locate(count, commands=True).store, wanted)
    assert read_image(some, wanted[0]).width == 22
    assert (tmp_path / "log").read_text() == "0\n1\n2\n" * 2 + "1\n"
    store = open_store(tmp_path)
    assert gathered(store, source.images) is store


def test_a_stream_that_is_cut(tmp_path: Path, web: WebServer) -> None:
    in_folder(tmp_path)
    cut = f"pipe:head -c 3000 {tmp_path}/x-{{0..2}}.tar"
    with pytest.raises(DataError, match=r"pipe:/000000\.tar is (cut|no readable tar)"):
        list(open_source(cut, commands=True).images())
    plain = f"pipe:cat {tmp_path}/x-{{0..2}}.tar"
    images = split_of(plain, commands=True).images
    store = gathered(locate(cut, commands=True).store, images)
    for _ in range(2):  # the second one does not try again
        with pytest.raises(TooShort, match=r"pipe:/000000\.tar ends before byte"):
            read_image(store, images[0])
    late = locate(f"pipe:cat {tmp_path}/x-{{0..2}}.tar; exit 1", commands=True).store
    with pytest.raises(StreamFailed, match="status 1"):
        read_image(gathered(late, images), images[0])


def test_a_command_is_the_users_word(tmp_path: Path) -> None:
    command = f"pipe:touch {tmp_path}/ran"
    for refused in (
        lambda: open_source(command),
        lambda: split_of(command),
        lambda: images_store(command, ("000000.tar",)),  # a plan that was made to do harm
        lambda: images_store("pipe:", ("000000.tar",), commands=True),
    ):
        with pytest.raises(ConfigError, match="pipe:"):
            refused()
    assert recorded(command) == "pipe:" and absolute(command) == command
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://h/folder", "lists no folder; name the tars, as in https://h/shard-"),
        ("https://h/x-{0..1}.zip", "lists no folder; name the tars"),
        ("https://h{0..1}/x.tar", "the braces must stand behind the host"),
        ("https:///x.tar", "without a host"),
        ("https://x.tar", "without a host and a path names no tar"),
        ("file://h/x.tar", "behind file:// stands an absolute path"),
        ("ftp://h/x.tar", "this scheme is not known"),
    ],
)
def test_urls_that_are_no_source(source: str, words: str) -> None:
    with pytest.raises((DataError, StorageError), match=words):
        locate(source)


def test_names_of_tars_at_urls(tmp_path: Path, web: WebServer) -> None:
    location = locate(f"{web.url}/a/{{b/x-{{0,1}},y}}.tar")
    assert location.store.url == f"{web.url}/a" and location.tars == (
        "b/x-0.tar",
        "b/x-1.tar",
        "y.tar",
    )
    with pytest.raises(ObjectMissing, match=rf"{web.url}/a/b/x-0\.tar: there is no such tar"):
        open_source(f"{web.url}/a/{{b/x-{{0,1}},y}}.tar")
    in_folder(tmp_path)
    assert locate(f"file://{tmp_path}/x-0.tar").store.url == str(tmp_path)


def test_the_version_of_a_plan(tmp_path: Path) -> None:
    """A job holds the tars to what they were at plan."""
    in_folder(tmp_path)
    command = f"pipe:cat {tmp_path}/x-{{0..2}}.tar"
    source = open_source(command, commands=True)
    images = list(source.images())
    assert isinstance(source, StreamedShards)
    versions = source.streams.versions
    open_store(tmp_path).replace("x-2.tar", tars()["x-0.tar"])
    later = locate(command, commands=True).store
    assert isinstance(later, type(source.streams))
    later.expect(versions, here=False)
    read_image(gathered(later, images[:4]), images[0])
    with pytest.raises(SourceChanged, match=r"000002\.tar is another tar than was listed"):
        read_image(gathered(later, images), images[0])
