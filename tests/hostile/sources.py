"""Sources of images: links that loop, devices for images, names that are hard to write, tars that
lie."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case, gzip_bomb
from tests.hostile.tiny_job import template
from tests.tars import jpeg, link, tar_of

_PLAN = ("--tokenizer", "tokenizer.safetensors", "--views", "2")
_RUN = (
    "tokenize",
    "run",
    "out",
    "--tokenizer",
    "tokenizer.safetensors",
    "--device",
    "cpu",
    "--bad-limit",
    "0.9",
)
Make = Callable[[Path], object]


def _case(
    name: str, make: Make, *says: str, code: int | tuple[int, ...] = 1, more: tuple[str, ...] = ()
) -> Case:
    """make: the source, of the folder of that name."""

    def prepare(folder: Path) -> None:
        (folder / "tokenizer.safetensors").symlink_to(template() / "tokenizer.safetensors")
        (folder / "source").mkdir()
        make(folder / "source")

    return Case(name, ("tokenize", "plan", "source", "out", *_PLAN, *more), says, code, prepare)


def _good(source: Path) -> Path:
    """Make a class of two images, and return its folder."""
    (source / "a").mkdir()
    for i in range(2):
        (source / "a" / f"{i}.jpg").write_bytes(jpeg(i))
    return source / "a"


def _with_file(name: bytes) -> Make:
    def make(source: Path) -> None:
        path = _good(source) / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(3))

    return make


def _empty_class(name: bytes) -> Make:
    def make(source: Path) -> None:
        _good(source)
        (source / os.fsdecode(name)).mkdir()

    return make


def _all_linked(source: Path) -> None:
    """Make folders that all hold links to each other: from one to the next there are 12! ways."""
    _good(source)
    names = [f"c{i}" for i in range(12)]
    for name in names:
        (source / name).mkdir()
    for one in names:
        for other in names:
            (source / one / other).symlink_to(source / other)


def _nested(source: Path) -> None:
    folder = _good(source)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def _tar(content: Callable[[], bytes]) -> Make:
    return lambda source: (source / "x.tar").write_bytes(content())


def _wds(label: bytes, extension: str = "json") -> Make:
    return _tar(lambda: tar_of({"k.jpg": jpeg(0), f"k.{extension}": label}))


def _lying(name: str, size: int) -> bytes:
    """Make a tar whose member says that it has `size` bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + b"1".ljust(1024, b"\0") + bytes(1024)


def _pax(records: bytes) -> bytes:
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    padded = records + bytes(-len(records) % 512)
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + tar_of({"k.jpg": jpeg(0), "k.cls": b"0"})


def _gnu_name(length: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, length
    name = (b"a" * (length - 5) + b".jpg\0").ljust(-(-length // 512) * 512, b"\0")
    return info.tobuf(tarfile.GNU_FORMAT) + name + tar_of({"k.jpg": jpeg(0), "k.cls": b"0"})


def _zeros(name: str, mib: int) -> bytes:
    """Make a packed tar of one file."""
    info = tarfile.TarInfo(name)
    info.size = mib << 20
    return gzip_bomb(info.tobuf(tarfile.GNU_FORMAT), mib)


def _devkit(content: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        _good(source)
        (source.parent / "devkit.tar.gz").write_bytes(content())

    return make


def _beside(name: str, make: Make) -> Make:
    def both(source: Path) -> None:
        _good(source)
        make(source.parent / name)

    return both


_NAMES = [
    _case("an image whose name is not UTF-8", _with_file(b"\xff.jpg"), "not UTF-8"),
    _case("a class whose name is not UTF-8", _with_file(b"../\xfe/x.jpg"), "not UTF-8"),
    _case("an empty class whose name is not UTF-8", _empty_class(b"\xfe"), "UTF-8"),
    _case("an image with a newline in its name", _with_file(b"a\nb.jpg"), "3 images", code=0),
    _case("an image whose name begins with a dash", _with_file(b"--help.jpg"), "3 images", code=0),
    _case("a class whose name begins with a dash", _with_file(b"../-rf/x.jpg"), "3 images", code=0),
    _case("a class with a newline in its name", _with_file(b"../b\n\nc/x.jpg"), "3 images", code=0),
]
_LINKS = [
    _case(
        "a class that links to itself",
        lambda s: (_good(s) / "again").symlink_to(s / "a"),
        "2 images",
        code=0,
    ),
    _case(
        "a class that links to the source",
        lambda s: (_good(s) / "up").symlink_to(s),
        "images",
        code=0,
    ),
    _case(
        "a class that is a link to itself",
        lambda s: (_good(s).parent / "b").symlink_to("b"),
        "2 images",
        code=0,
    ),
    _case("classes that all link to each other", _all_linked, "links", code=74),
    _case("1,500 folders in each other", _nested, "too deep", code=74),
    _case("a source that is a FIFO", lambda s: (s.rmdir(), os.mkfifo(s)), "no folder", code=74),
    _case(
        "a source that is /dev/zero",
        lambda s: (s.rmdir(), s.symlink_to("/dev/zero")),
        "no folder",
        code=74,
    ),
    _case(
        "a FIFO and /dev/zero for images",
        lambda s: (os.mkfifo(_good(s) / "f.jpg"), (s / "a/z.jpg").symlink_to("/dev/zero")),
        "4 images",
        code=0,
    ),
    _case("a tar that is a FIFO", lambda s: os.mkfifo(s / "x.tar"), "x.tar"),
    _case("a tar that is /dev/zero", lambda s: (s / "x.tar").symlink_to("/dev/zero"), "x.tar"),
]
_LABELS = [
    _case(f"a JSON label that is {name}", _wds(label), "label")
    for name, label in {
        "a list": b'{"label": [1]}',
        "true": b'{"label": true}',
        "infinite": b'{"label": Infinity}',
        "1e999": b'{"label": 1e999}',
        "negative": b'{"label": -1}',
        "of 5,000 digits": b'{"label": ' + b"9" * 5000 + b"}",
        "there twice": b'{"label": 1, "label": 2}',
        "nested deeply": b'{"label": ' + b"[" * 10**6,
        "in UTF-16": '{"label": "\ud83d\ude00"}'.encode("utf-16", "surrogatepass"),
    }.items()
]
_TARS = [
    _case(
        "a label of 8 GiB",
        _tar(lambda: tar_of({"k.jpg": jpeg(0)})[: -1024 * 8] + _lying("k.cls", 2**33 - 1)),
        "tar",
    ),
    _case("an image of 8 GiB in a tar", _tar(lambda: _lying("k.jpg", 2**33 - 1)), "tar"),
    _case(
        "one key twice",
        _tar(lambda: tar_of({"k.jpg": jpeg(0), "k.cls": b"0", "k.png": jpeg(1)})),
        "several",
    ),
    _case(
        "a tar whose link loops",
        _tar(lambda: tar_of({"k.jpg": link(tarfile.SYMTYPE, "k.jpg"), "k.cls": b"0"})),
        "link",
    ),
    _case(
        "a tar that links to /etc/passwd",
        _tar(lambda: tar_of({"k.jpg": link(tarfile.SYMTYPE, "/etc/passwd")})),
        "link",
    ),
    _case(
        "a FIFO in a tar",
        _tar(lambda: tar_of({"k.jpg": link(tarfile.FIFOTYPE), "k.cls": b"0"})),
        "k.jpg",
    ),
    _case("a tar header of 1 MiB of digits", _tar(lambda: _pax(b"1" * 2**20)), "tar"),
    _case(
        "a tar header of digits that never ends",
        _tar(lambda: _pax(b"1" * 2**14 + b" hdrcharset")),
        "tar",
    ),
    _case("a name of 10 MiB in a tar", _tar(lambda: _gnu_name(10 * 2**20)), "name"),
    _case("a tar of zeros", _tar(lambda: bytes(2**20)), "x.tar"),
    _case(
        "a tar that is a terabyte of nothing",
        lambda s: os.truncate(_touched(s / "x.tar"), 2**40),
        "x.tar",
    ),
    _case(
        "two tars of one key",
        lambda s: [(s / f"{n}.tar").write_bytes(_lying("k.jpg", -5 % 2**33)) for n in "ab"],
        "tar",
    ),
]


def _touched(path: Path) -> Path:
    path.touch()
    return path


_NAMED = ("--class-names", "names")
_LABELLED = ("--labels", "names")
_KIT = ("--devkit", "devkit.tar.gz")
_LISTS = [
    _case(
        "class names from /dev/zero",
        _beside("names", lambda p: p.symlink_to("/dev/zero")),
        "names",
        more=_NAMED,
    ),
    _case("class names from a FIFO", _beside("names", os.mkfifo), "regular", more=_NAMED),
    _case(
        "class names of a terabyte",
        _beside("names", lambda p: os.truncate(_touched(p), 2**40)),
        "MiB",
        more=_NAMED,
    ),
    _case(
        "class names that are not text",
        _beside("names", lambda p: p.write_bytes(b"\xff\xfe\0a")),
        "names",
        more=_NAMED,
    ),
    _case("labels from a FIFO", _beside("names", os.mkfifo), "regular", more=_LABELLED),
    _case("a devkit that is a FIFO", _beside("devkit.tar.gz", os.mkfifo), "devkit", more=_KIT),
    _case(
        "a devkit of zeros without end", _devkit(lambda: _zeros("zeros", 1024)), "devkit", more=_KIT
    ),
    _case(
        "a devkit whose table is none",
        _devkit(
            lambda: gzip.compress(tar_of({"data/meta.mat": b"MATLAB 5.0 MAT-file" + b"\x01" * 500}))
        ),
        "devkit",
        more=_KIT,
    ),
    _case(
        "a devkit whose table is a gigabyte",
        _devkit(lambda: _zeros("data/meta.mat", 1024)),
        "devkit",
        more=_KIT,
    ),
]


def _planned(name: str, change: Callable[[Path], object], *says: str, code: int = 1) -> Case:
    """change: of the images, once they were planned."""

    def prepare(folder: Path) -> None:
        from data_pipeline.images.view_recipe import ViewRecipe
        from model.weights import load_tokenizer
        from tests.datasets import plan

        (folder / "source").mkdir()
        (folder / "tokenizer.safetensors").symlink_to(template() / "tokenizer.safetensors")
        classes = _good(folder / "source")
        tokenizer = load_tokenizer(folder / "tokenizer.safetensors")
        plan(folder / "source", folder / "out", tokenizer, ViewRecipe(size=16, views=2))
        change(classes)

    return Case(name, _RUN, says, code, prepare)


def _instead(image: str, make: Make) -> Make:
    def harm(folder: Path) -> None:
        (folder / image).unlink()
        make(folder / image)

    return harm


_IMAGES = [
    _planned("a FIFO where an image was", _instead("0.jpg", os.mkfifo), "1 quarantined", code=0),
    _planned(
        "/dev/zero where an image was",
        _instead("0.jpg", lambda p: p.symlink_to("/dev/zero")),
        "1 quarantined",
        code=0,
    ),
    _planned(
        "an image that grew to a terabyte",
        lambda f: os.truncate(f / "0.jpg", 2**40),
        "1 quarantined",
        code=0,
    ),
    _planned(
        "an image that links to itself",
        _instead("0.jpg", lambda p: p.symlink_to("0.jpg")),
        "1 quarantined",
        code=0,
    ),
    _planned(
        "parts that go elsewhere",
        lambda f: (f.parent.parent / "out/parts").symlink_to(f.parent.parent.parent / "outside"),
        "link",
        code=74,
    ),
]

CASES = [*_NAMES, *_LINKS, *_LABELS, *_TARS, *_LISTS, *_IMAGES]
