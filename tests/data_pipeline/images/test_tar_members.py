"""Members of tars that are no plain files: read as what they stand for, or an error that names
them."""

from __future__ import annotations

import random
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.images.sources import open_source
from data_pipeline.images.tar_members import members
from data_pipeline.storage import open_store
from model.errors import DataError
from tests.tars import jpeg, link, tar_of

FILES = {"a/x.jpg": jpeg(0), "./b/y.jpg": jpeg(1)}


def read(folder: Path, files: dict[str, Any]) -> dict[str, bytes]:
    content = tar_of(files)
    (folder / "x.tar").write_bytes(content)
    store = open_store(folder)
    listed = members(store, "x.tar", len(content), wanted=lambda name: name.endswith(".jpg"))
    return {m.name: store.read("x.tar", m.offset, m.size) for m in listed}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.LNKTYPE, "a/x.jpg"),
        (tarfile.LNKTYPE, "./a/x.jpg"),
        (tarfile.SYMTYPE, "../a/x.jpg"),
        (tarfile.SYMTYPE, "second.jpg"),  # another link
    ],
)
def test_links_are_read_as_what_they_point_to(tmp_path: Path, kind: bytes, target: str) -> None:
    second = {"b/second.jpg": link(tarfile.SYMTYPE, "../a/x.jpg")}
    for files in (
        {**FILES, "b/link.jpg": link(kind, target)},
        {"b/link.jpg": link(kind, target), **FILES},
    ):
        listed = read(tmp_path, {**files, **second})
        assert listed == {**FILES, "b/link.jpg": FILES["a/x.jpg"], "b/second.jpg": FILES["a/x.jpg"]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            link(tarfile.SYMTYPE, "/etc/passwd"),
            "b/z.jpg is a link to /etc/passwd, which is no file in this tar",
        ),
        (
            link(tarfile.SYMTYPE, "../../a/x.jpg"),
            "b/z.jpg is a link to ../../a/x.jpg, which is no file in this tar",
        ),
        (
            link(tarfile.LNKTYPE, "a/none.jpg"),
            "which is no file in this tar; pack it again with `tar --dereference",
        ),
        (link(tarfile.SYMTYPE, "z.jpg"), "b/z.jpg is a link to z.jpg, which is no file"),
        (link(tarfile.FIFOTYPE), "b/z.jpg is a device, a pipe"),
        (link(tarfile.CHRTYPE), "b/z.jpg is a device, a pipe"),
        (link(b"Z"), "b/z.jpg is a device, a pipe or of unknown type"),
    ],
)
def test_members_that_cannot_be_read_are_named(
    tmp_path: Path, header: tarfile.TarInfo, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, {**FILES, "b/z.jpg": header})
    assert read(tmp_path, {**FILES, "b/z.txt": header}) == FILES  # nobody asked for this one


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_members(tmp_path: Path, format: str) -> None:
    """They are stored without their holes, so what lies in the tar is not their bytes."""
    with (tmp_path / "x.ppm").open("wb") as file:
        file.write(b"P6 300 300 255\n")
        file.seek(200_000)
        file.write(bytes(range(256)) * 300)
    subprocess.run(
        ["tar", "--sparse", f"--format={format}", "-cf", "x.tar", "x.ppm"], cwd=tmp_path, check=True
    )
    with pytest.raises(
        DataError, match=r"x\.ppm is stored as a sparse file; pack it again without --sparse"
    ):
        list(open_source(tmp_path / "x.tar", labels=["0"]).images())


def test_damaged_headers(tmp_path: Path) -> None:
    """A damaged tar is listed in full or refused; no listing ends early without a word."""
    whole = {f"{i}.jpg": bytes([i]) * 600 for i in range(4)} | {
        "4.jpg": link(tarfile.LNKTYPE, "2.jpg")
    }
    chance, store = random.Random(0), open_store(tmp_path)
    tars = [tar_of(whole, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    refused = 0
    for _ in range(300):
        content = bytearray(chance.choice(tars))
        # Behind them is the end of the tar.
        header = chance.randrange(len(content) // 512 - 18) * 512
        for _ in range(chance.randint(1, 3)):
            content[header + chance.randrange(512)] = chance.randrange(256)
        # A checksum that fits.
        if chance.random() < 0.7 and content[header + 257 : header + 262] == b"ustar":
            content[header + 148 : header + 156] = b" " * 8
            content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
        (tmp_path / "x.tar").write_bytes(content)
        try:
            listed = list(members(store, "x.tar", len(content)))
        except DataError:
            refused += 1
        else:
            assert 3 <= len(listed) <= 5  # a member may have become a folder
    assert 20 < refused < 280


@pytest.mark.parametrize("size", [-512, -(2**40), 2**40])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_sizes_that_lie(tmp_path: Path, kind: bytes, size: int) -> None:
    """It is neither read into memory nor gone through for ever."""
    header = link(kind)
    header.name, header.size = "x.jpg", size
    content = header.tobuf(tarfile.GNU_FORMAT) + b"1" * 512 + bytes(1024)
    (tmp_path / "x.tar").write_bytes(content)
    with (tmp_path / "x.tar").open("r+b") as file:
        file.truncate(2**30)  # a gibibyte of nothing
    with pytest.raises(DataError, match=r"x\.tar"):
        print(list(members(open_store(tmp_path), "x.tar", 2**30)))
