"""Data sets, plans and receipts: numbers that cannot be, names that lead elsewhere, lists that blow
up, files that are none. Every command that reads data answers each of them in the same way."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

from data_pipeline.sharding.plan import PLAN
from data_pipeline.shards.format import Layout
from data_pipeline.shards.manifest import MANIFEST
from tests.hostile.case import Case, gzip_bomb
from tests.hostile.tiny_job import RECEIPT, SHARD, Change, copied, edit, rewrite_shard

_HUGE = 10**18
_LAYOUT = Layout(2, 16)  # of the tiny job
_BATCH = ("--global-batch", "4")
VERIFY, INSPECT = ("tokenize", "verify", "tokens"), ("tokenize", "inspect", "tokens")
STATUS, FINALIZE = ("tokenize", "status", "tokens"), ("tokenize", "finalize", "tokens")
RUN = ("tokenize", "run", "tokens", "--tokenizer", "tokenizer.safetensors", "--device", "cpu")
BENCH = ("data", "bench", "tokens", "--seconds", "0.1", *_BATCH)
ORDER = ("data", "order", "tokens", "--step", "0", *_BATCH)
ALL = ("data", "order", "tokens", "--step", "0", "--global-batch", "8", "--count", "8")
PREVIEW = ("data", "preview", "tokens", "--tokenizer", "tokenizer.safetensors", *_BATCH)
PLAN_RUN = ("plan", "run.yaml", "data.tokens=tokens", "--gpus", "1")
_READERS = {
    "verify": VERIFY,
    "inspect": INSPECT,
    "bench": BENCH,
    "order": ORDER,
    "preview": PREVIEW,
}

Harm = Callable[[Path], object]


def _case(name: str, command: tuple[str, ...], harm: Harm, *says: str, code: int = 1) -> Case:
    """harm: of the data set's folder."""

    def make(folder: Path) -> None:
        harm(copied(folder))

    return Case(name, command, says, code, make)


def _edited(file: str, change: Change) -> Harm:
    return lambda data: edit(data / file, change)


def _manifest(name: str, command: tuple[str, ...], change: Change, *says: str) -> Case:
    return _case(f"a data set with {name}", command, _edited(MANIFEST, change), MANIFEST, *says)


def _plan(name: str, command: tuple[str, ...], change: Change, *says: str) -> Case:
    return _case(f"a plan with {name}", command, _edited(PLAN, change), PLAN, *says)


def _receipt(name: str, command: tuple[str, ...], change: Change, *says: str) -> Case:
    return _case(f"a receipt with {name}", command, _edited(RECEIPT, change), RECEIPT, *says)


def _replaced(name: str, make: Callable[[Path], object]) -> Harm:
    def harm(data: Path) -> None:
        (data / name).unlink()
        make(data / name)

    return harm


def _content(name: str, content: Callable[[], bytes]) -> Harm:
    return _replaced(name, lambda path: path.write_bytes(content()))


def _all_fifos(data: Path) -> None:
    """Replace all shards, since the order decides which one is opened first."""
    for shard in data.glob("*.tar"):
        _replaced(shard.name, os.mkfifo)(data)


def _moved_out(name: str) -> Harm:
    """The file itself lies outside, and a link in its place."""

    def harm(data: Path) -> None:
        outside = data.parent.parent / "outside" / "it"
        outside.write_bytes((data / name).read_bytes())
        _replaced(name, lambda path: path.symlink_to(outside))(data)

    return harm


def _shards_moved_out(data: Path) -> None:
    outside = data.parent.parent / "outside"
    for shard in list(data.glob("*.tar")):
        shard.rename(outside / shard.name)
        shard.symlink_to(outside / shard.name)


def _set_shard(**values: object) -> Change:
    return lambda c: c["shards"][0].update(values)


def _listed(member: bytes) -> Harm:
    """Let the plan's list hold these lines, packed by gzip, for its first shard."""

    def harm(data: Path) -> None:
        made = json.loads((data / PLAN).read_bytes())
        rest = (data / made["list"]).read_bytes()[made["slices"][1] :]
        (data / made["list"]).write_bytes(member + rest)
        slices = [0, len(member), len(member) + len(rest)]
        edit(data / PLAN, lambda c: c.update(slices=slices))
        (data / RECEIPT).unlink()
        (data / SHARD).unlink()
        (data / MANIFEST).unlink()

    return harm


def _tokens(value: int) -> Harm:
    def change(content: object) -> None:
        content[_LAYOUT.tokens_offset : _LAYOUT.tokens_offset + 2] = [value % 256, value // 256]  # type: ignore[index]

    return lambda data: rewrite_shard(data, change)


def _digits(offset: int, text: bytes) -> Harm:
    return lambda data: rewrite_shard(
        data, lambda c: c.__setitem__(slice(offset, offset + len(text)), list(text))
    )


_MANIFEST_CASES = [
    _manifest("no shards", VERIFY, lambda c: c.update(shards=[]), "shards"),
    _manifest("no shards, read for training", ORDER, lambda c: c.update(shards=[]), "shards"),
    _manifest("a shard of no rows", BENCH, _set_shard(rows=0, bytes=1024), "shards.0", "rows"),
    _manifest("a shard of -1 rows", VERIFY, _set_shard(rows=-1), "shards.0.rows"),
    _manifest("10^18 rows", ORDER, _set_shard(rows=_HUGE, bytes=2048 * _HUGE), "shards.0.rows"),
    _manifest(
        "10^15 rows and as many bytes",
        BENCH,
        _set_shard(rows=2**40, bytes=2**51 + 1024),
        "shards.0.rows",
    ),
    _manifest("more rows than its bytes", INSPECT, _set_shard(rows=5), "9216 bytes", "5 rows"),
    _manifest("more bytes than its rows", PREVIEW, _set_shard(bytes=9217), "9217 bytes"),
    _manifest("true for rows", VERIFY, _set_shard(rows=True), "shards.0.rows", "integer"),
    _manifest("text for rows", INSPECT, _set_shard(rows="4"), "shards.0.rows", "integer"),
    _manifest("null for shards", BENCH, lambda c: c.update(shards=None), "shards"),
    _manifest("a stride of 1", VERIFY, lambda c: c.update(stride=1), "stride"),
    _manifest("a stride of 0", INSPECT, lambda c: c.update(stride=0), "stride"),
    _manifest("other fields", ORDER, lambda c: c["fields"]["tokens"].update(offset=0), "fields"),
    _manifest("no fields", BENCH, lambda c: c.update(fields={}), "fields"),
    _manifest("no codes", INSPECT, lambda c: c.update(codebook_size=0), "codebook_size"),
    _manifest("10^12 codes", INSPECT, lambda c: c.update(codebook_size=10**12), "codebook_size"),
    _manifest("10^9 tokens", VERIFY, lambda c: c.update(tokens=10**9), "tokens"),
    _manifest("0 tokens", INSPECT, lambda c: c.update(tokens=0), "tokens"),
    _manifest("10^12 views", BENCH, lambda c: c["views"].update(views=10**12), "views.views"),
    _manifest(
        "views at an infinite scale",
        VERIFY,
        lambda c: c["views"].update(scale=[0.2, float("inf")]),
        "scale",
    ),
    _manifest("no classes", INSPECT, lambda c: c.update(classes=[]), "classes"),
    _manifest(
        "fewer titles than classes",
        INSPECT,
        lambda c: c.update(class_titles=["one"]),
        "class_titles",
    ),
    _manifest("a class that is a number", ORDER, lambda c: c.update(classes=[1, 2]), "classes.0"),
    _manifest(
        "a tokenizer that is none", PREVIEW, lambda c: c.update(tokenizer="x\n\ny"), "tokenizer"
    ),
    _manifest("an unknown key", BENCH, lambda c: c.update(more=1), "more"),
    _manifest("a missing key", VERIFY, lambda c: c.pop("views"), "views", "required"),
    _manifest(
        "two shards of one name",
        VERIFY,
        lambda c: c["shards"][1].update(name=SHARD),
        SHARD,
        "twice",
    ),
    _manifest(
        "a name above its folder",
        VERIFY,
        _set_shard(name="../../outside/x"),
        "shards.0.name",
        "inside",
    ),
    _manifest(
        "/etc/passwd for a shard",
        INSPECT,
        _set_shard(name="/etc/passwd"),
        "shards.0.name",
        "inside",
    ),
    _manifest("a name with a NUL", BENCH, _set_shard(name="a\0b"), "shards.0.name", "control"),
    _manifest(
        "a name in another store", ORDER, _set_shard(name="s3://other/x.tar"), "shards.0.name"
    ),
    _manifest("an empty name", VERIFY, _set_shard(name=""), "shards.0.name"),
    _manifest("a checksum that is none", VERIFY, _set_shard(sha256="0"), "shards.0.sha256"),
    _manifest("no shards, planned for", PLAN_RUN, lambda c: c.update(shards=[]), "shards"),
    _case(
        "a dataset.json that is a list",
        VERIFY,
        _content(MANIFEST, lambda: b"[1]"),
        MANIFEST,
        "list",
    ),
    _case("a dataset.json of a NUL", INSPECT, _content(MANIFEST, lambda: b"\0"), MANIFEST, "JSON"),
    _case(
        "a dataset.json with no fingerprint",
        ORDER,
        _content(MANIFEST, lambda: b"{}"),
        MANIFEST,
        "fingerprint",
    ),
    _case(
        "100 MB of nesting", BENCH, _content(MANIFEST, lambda: b"[" * 100_000_000), MANIFEST, "MiB"
    ),
    _case(
        "30 MB of nesting",
        VERIFY,
        _content(MANIFEST, lambda: b"[" * 30_000_000),
        MANIFEST,
        "values",
    ),
    _case(
        "30 MB of lists",
        INSPECT,
        _content(MANIFEST, lambda: b'{"a":[' + b"[]," * 10**7 + b"1]}"),
        "values",
    ),
    _case(
        "an enormous dataset.json",
        VERIFY,
        _replaced(MANIFEST, lambda p: os.truncate(_new(p), 2**40)),
        "MiB",
    ),
    _case(
        "a FIFO for dataset.json",
        BENCH,
        _replaced(MANIFEST, os.mkfifo),
        MANIFEST,
        "no regular file",
    ),
    _case(
        "/dev/zero for dataset.json",
        VERIFY,
        _replaced(MANIFEST, lambda p: p.symlink_to("/dev/zero")),
        MANIFEST,
    ),
    _case(
        "a folder for dataset.json",
        ORDER,
        _replaced(MANIFEST, Path.mkdir),
        MANIFEST,
        "no regular file",
    ),
    _case(
        "a dataset.json that lies elsewhere",
        INSPECT,
        _moved_out(MANIFEST),
        MANIFEST,
        "link",
        "out of",
    ),
]


def _new(path: Path) -> Path:
    path.touch()
    return path


_SHARD_CASES = [
    *(
        _case(f"FIFOs for shards: {name}", c, _all_fifos, "tokens-00000", "regular")
        for name, c in _READERS.items()
    ),
    *(
        _case(
            f"shards that lie elsewhere: {name}",
            c,
            _shards_moved_out,
            "tokens-00000",
            "link",
            "out of",
        )
        for name, c in _READERS.items()
    ),
    _case(
        "a shard that is a link to itself",
        VERIFY,
        _replaced(SHARD, lambda p: p.symlink_to(p.name)),
        SHARD,
    ),
    _case(
        "a shard that is a terabyte",
        VERIFY,
        lambda data: os.truncate(data / SHARD, 2**40),
        SHARD,
        "bytes",
    ),
    _case(
        "a shard that is a terabyte: inspect",
        INSPECT,
        lambda data: os.truncate(data / SHARD, 2**40),
        SHARD,
    ),
    _case(
        "a shard that is empty", INSPECT, lambda data: os.truncate(data / SHARD, 0), SHARD, "bytes"
    ),
    _case("tokens beyond the codebook", VERIFY, _tokens(16), SHARD, "codebook"),
    _case("tokens beyond the codebook: inspect", INSPECT, _tokens(65_535), SHARD, "codebook"),
    _case(
        "tokens beyond the codebook: order",
        (*ORDER, "--count", "4"),
        _tokens(16),
        SHARD,
        "codebook",
    ),
    _case(
        "labels beyond the classes",
        INSPECT,
        _digits(_LAYOUT.label_offset, b"0000000002"),
        SHARD,
        "classes",
    ),
    _case(
        "labels beyond the classes: bench",
        BENCH,
        _digits(_LAYOUT.label_offset, b"9999999999"),
        SHARD,
        "classes",
    ),
    _case(
        "labels that are no digits",
        INSPECT,
        _digits(_LAYOUT.label_offset, b"-000000001"),
        SHARD,
        "digits",
    ),
    _case(
        "keys that are no digits: order",
        (*ORDER, "--count", "4"),
        _digits(0, b"00000000000x"),
        SHARD,
        "digits",
    ),
    _case("keys of no planned image", ALL, _digits(3 * 2048, b"000099999999"), "plan"),
]

_PLAN_CASES = [
    _plan("no images", STATUS, lambda c: c.update(pictures=0), "pictures"),
    _plan("-1 images", FINALIZE, lambda c: c.update(pictures=-1), "pictures"),
    _plan("10^18 images", STATUS, lambda c: c.update(pictures=_HUGE), "pictures"),
    _plan(
        "more images than its shards hold",
        STATUS,
        lambda c: c.update(pictures=80),
        "images",
        "shards",
    ),
    _plan("no slices", STATUS, lambda c: c.update(slices=[]), "slices"),
    _plan("slices that fall", RUN, lambda c: c.update(slices=[0, 136, 67]), "slices"),
    _plan("slices that start late", FINALIZE, lambda c: c.update(slices=[10, 67, 136]), "slices"),
    _plan("a negative slice", RUN, lambda c: c.update(slices=[-5, 67, 136]), "slices"),
    _plan("shards of 0 rows", STATUS, lambda c: c["recipe"].update(rows=0), "recipe.rows"),
    _plan("shards of -4 rows", RUN, lambda c: c["recipe"].update(rows=-4), "recipe.rows"),
    _plan("views of 10^9 px", RUN, lambda c: c["recipe"]["views"].update(size=10**9), "views.size"),
    _plan(
        "a list above its folder", RUN, lambda c: c.update(list="../outside/list"), "list", "inside"
    ),
    _plan("a list at /dev/zero", RUN, lambda c: c.update(list="/dev/zero"), "list"),
    _plan(
        "an object above its source", STATUS, lambda c: c.update(objects=["../x.tar"]), "objects"
    ),
    _plan("a source with a NUL", RUN, lambda c: c.update(source="a\0b"), "source"),
    _plan("no classes", STATUS, lambda c: c.update(classes=[]), "classes"),
    _plan("null for its recipe", FINALIZE, lambda c: c.update(recipe=None), "recipe"),
    _plan("a seed that is text", VERIFY, lambda c: c["recipe"].update(seed="1"), "recipe.seed"),
    _plan("-1 images: order", ORDER, lambda c: c.update(pictures=-1), "pictures"),
    _case("a FIFO for plan.json", STATUS, _replaced(PLAN, os.mkfifo), PLAN, "no regular file"),
    _case("a plan that lies elsewhere", FINALIZE, _moved_out(PLAN), PLAN, "link", "out of"),
    _case(
        "100 MB of nesting in a plan",
        STATUS,
        _content(PLAN, lambda: b'{"a":' * 20_000_000),
        PLAN,
        "MiB",
    ),
    _case("a gzip bomb in the plan's list", RUN, _listed(gzip_bomb(b"", 1024)), "an endless name"),
    _case(
        "a gzip bomb of images",
        RUN,
        _listed(gzip.compress(b'["a",0,1]\n' * 10**6, 1)),
        "more images",
    ),
    _case("a list that ends early", RUN, _listed(gzip.compress(b'["a/0.jpg",0,1]\n')), "1 images"),
    *(
        _case(
            f"a listed image {name}",
            RUN,
            _listed(gzip.compress((line + b"\n") * 4)),
            "in the slice of shard 0",
        )
        for name, line in {
            "of a negative size": b'["a/0.jpg",0,-1]',
            "of class 2": b'["a/0.jpg",2,5]',
            "of class -1": b'["a/0.jpg",-1,5]',
            "of class true": b'["a/0.jpg",true,5]',
            "in tar -1": b'["a/0.jpg",0,5,-1,0]',
            "above its source": b'["a/0.jpg",0,5,"../../etc/passwd"]',
            "that is a number": b"7",
            "that is an object": b'{"id":"a"}',
            "with no id": b"[null,0,5]",
            "of an infinite size": b'["a/0.jpg",0,Infinity]',
            "nested deeply": b"[" * 10_000,
            "of 5,000 digits": b'["a/0.jpg",0,' + b"1" * 5_000 + b"]",
            "with a NUL": b'["a\\u0000b",0,5]',
            "at a negative offset": b'["a/0.jpg",0,5,0,-1]',
        }.items()
    ),
]

_RECEIPT_CASES = [
    _receipt("-1 rows", FINALIZE, lambda c: c["shard"].update(rows=-1), "shard.rows"),
    _receipt("10^18 rows", FINALIZE, lambda c: c["shard"].update(rows=_HUGE), "shard.rows"),
    _receipt(
        "a shard above its folder",
        FINALIZE,
        lambda c: c["shard"].update(name="../x.tar"),
        "shard.name",
    ),
    _receipt(
        "null for what is quarantined", STATUS, lambda c: c.update(quarantined=None), "quarantined"
    ),
    _receipt(
        "a reason that is a list",
        STATUS,
        lambda c: c.update(quarantined=[{"id": "a", "reason": []}]),
        "reason",
    ),
    _case(
        "a FIFO for a receipt", STATUS, _replaced(RECEIPT, os.mkfifo), RECEIPT, "no regular file"
    ),
    _case(
        "a FIFO for a receipt: finalize",
        FINALIZE,
        _replaced(RECEIPT, os.mkfifo),
        RECEIPT,
        "no regular file",
    ),
    _case(
        "a receipt that lies elsewhere", FINALIZE, _moved_out(RECEIPT), RECEIPT, "link", "out of"
    ),
    _case("FIFOs for shards: finalize", FINALIZE, _all_fifos, SHARD, "no regular file"),
    _case(
        "shards that lie elsewhere: finalize", FINALIZE, _shards_moved_out, SHARD, "link", "out of"
    ),
    _case(
        "a receipt of another number",
        STATUS,
        lambda d: (d / "parts/000009.json").write_bytes(b"{}"),
        "another plan",
    ),
]

_COMMAND_CASES = [
    _case(
        "a step that is none",
        ("data", "order", "tokens", "--step", str(10**30), *_BATCH),
        str,
        "step",
        code=2,
    ),
    _case("a window of 10^12 shards", (*ORDER, "--window", str(10**12)), str, "--window", code=2),
    _case(
        "a data set on /dev/zero",
        ("tokenize", "verify", "/dev/zero"),
        str,
        "no finished token data set",
    ),
]

CASES = [*_MANIFEST_CASES, *_SHARD_CASES, *_PLAN_CASES, *_RECEIPT_CASES, *_COMMAND_CASES]
