"""Tars at urls, from a real web server with and without parts, and from commands."""

from __future__ import annotations

import socket
import traceback
from pathlib import Path

import pytest

from data_pipeline.images.location import absolute, locate
from data_pipeline.storage import (
    AccessDenied,
    NoRanges,
    ObjectMissing,
    SourceChanged,
    StorageError,
    StreamFailed,
    Throttled,
    TooShort,
    Truncated,
    Unreachable,
)
from data_pipeline.storage.http import HttpStore
from data_pipeline.storage.urls import UrlStore
from tests.web_server import WebServer

CONTENT = bytes(range(256)) * 5000
BROKEN = "the body broke off at byte"


def store_at(web: WebServer, ranges: bool = True) -> HttpStore:
    web.files |= {"p/x-0.tar": CONTENT, "p/x-1.tar": b"1", "p/none.tar": b""}
    web.ranges = ranges
    return HttpStore(f"{web.url}/p", ("x-0.tar", "x-1.tar", "none.tar"))


def test_parts(web: WebServer) -> None:
    store = store_at(web)
    sizes = [("x-0.tar", len(CONTENT)), ("x-1.tar", 1), ("none.tar", 0)]
    assert [(e.name, e.size) for e in store.list()] == sizes and store.ranged
    assert [e.name for e in store.list("x")] == ["x-0.tar", "x-1.tar"]
    web.asked.clear()
    assert store.read("x-0.tar", 1000, 500) == CONTENT[1000:1500]
    assert web.asked == [("/p/x-0.tar", "bytes=1000-1499", None)]
    assert store.read("x-0.tar", 10**6) == CONTENT[10**6 :] and store.read("x-0.tar") == CONTENT
    with pytest.raises(TooShort, match=r"ends at byte 1; 9 were expected") as short:
        store.read("x-1.tar", 0, 9)
    assert short.value.content == b"1"
    with pytest.raises(TooShort):
        store.read("x-1.tar", 1, 1)
    with pytest.raises(StorageError, match=r"can only be read; write to a folder"):
        store.create("x-2.tar", b"")


def test_whole_tars(web: WebServer) -> None:
    """A server that knows no parts: a tar is streamed into a file."""
    store = store_at(web, ranges=False)
    assert [e.size for e in store.list()] == [len(CONTENT), 1, 0] and not store.ranged
    with store.copied("x-0.tar") as file:
        file.seek(0)
        assert file.read() == CONTENT
    assert store.sizes == {"x-0.tar": len(CONTENT)}
    with pytest.raises(NoRanges, match=r"with the whole tar; run it again"):
        store.read("x-0.tar", 5, 5)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, ObjectMissing, "there is no such tar"),
        (401, AccessDenied, "check the login in ~/.netrc"),
        (403, AccessDenied, "access denied"),
        (429, Throttled, "slow down (429) after 3 tries"),
        (503, Throttled, "slow down (503) after 3 tries"),
        (500, Unreachable, "failed (500) 3 times"),
        (400, StorageError, "status 400; check the url"),
    ],
)
def test_refusals(web: WebServer, status: int, error: type[StorageError], words: str) -> None:
    store = store_at(web)
    web.faults = [status] * 9
    with pytest.raises(error) as refused:
        store.read("x-0.tar", 0, 1)
    assert words in str(refused.value) and f"{web.url}/p/x-0.tar" in str(refused.value)
    assert len(web.asked) == (3 if error in (Throttled, Unreachable) else 1)


def test_faults_that_pass(web: WebServer) -> None:
    store = store_at(web)
    web.faults = [503, 500, "cut", 503, "cut"]
    assert store.read("x-0.tar") == CONTENT  # each break is read on from where it was
    assert [part for _, part, _ in web.asked].count("bytes=0-") == 3
    web.faults = ["cut", 500]
    store = store_at(web, ranges=False)
    with store.copied("x-0.tar"):  # from its beginning again
        assert store.sizes["x-0.tar"] == len(CONTENT)
    web.faults = ["cut"] * 3
    with pytest.raises(Truncated, match=f"{BROKEN} 640000 of 1280000"):
        store.copied("x-0.tar")


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDP_HTTP_ATTEMPTS", "2")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        store = HttpStore(f"http://127.0.0.1:{bound.getsockname()[1]}", ("x.tar",))
        with pytest.raises(Unreachable, match="no answer after 2 tries"):
            next(iter(store.list()))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_tar_that_changes(web: WebServer, ranges: bool) -> None:
    def look(store: HttpStore) -> None:
        if ranges:
            store.read("x-0.tar", 0, 10)
        else:
            store.copied("x-0.tar").close()

    store = store_at(web, ranges)
    look(store)
    versions = dict(store.versions)
    web.files["p/x-0.tar"] = bytes(len(CONTENT))
    with pytest.raises(SourceChanged, match=r"x-0\.tar is another tar than was listed"):
        look(store)
    later = HttpStore(f"{web.url}/p", ("x-0.tar",))  # as a job has it, which reads a plan
    later.expect(versions, here=True)
    with pytest.raises(SourceChanged):
        look(later)
    moved = HttpStore(f"{web.url}/p", ("x-0.tar",))
    moved.expect(versions, here=False)
    if ranges:
        look(moved)  # another server gives another tag to the same bytes
    else:
        with pytest.raises(SourceChanged):
            look(moved)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@h/x.tar",
        f"https://{SECRET}@h/x.tar",
        f"https://h/x-{{0..3}}.tar?token={SECRET}",
        f"hf://datasets/a/b/x.tar#{SECRET}",
        f"sftp://user:{SECRET}@h/x.tar",
        f"gs://b/x.tar?{SECRET}",
    ],
)
def test_no_secret_in_a_url(url: str) -> None:
    for read in (absolute, locate):
        with pytest.raises(StorageError, match="takes no key and secret") as refused:
            read(url)
        assert SECRET not in str(refused.value)


def test_no_secret_in_messages(web: WebServer) -> None:
    """Neither what a redirection has signed, nor a command."""
    store = store_at(web)
    for to in (f"/gone?signature={SECRET}", f"http://127.0.0.1:1/?s={SECRET}", f"x://{SECRET}"):
        web.moved = {"/p/x-0.tar": to}
        with pytest.raises(StorageError) as failed:
            store.read("x-0.tar", 0, 1)
        assert SECRET not in "".join(traceback.format_exception(failed.value))
    for command in (f"exit 3 # {SECRET}", f"no-such-program {SECRET} 2> /dev/null"):
        pipe = locate(f"pipe:{command}", commands=True).store
        with pytest.raises(StreamFailed, match="ended with status") as failed:
            pipe.read("000000.tar")
        assert SECRET not in "".join(traceback.format_exception(failed.value)) + pipe.url


def test_logins(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(web)
    web.login = "Basic bWU6aHVudGVyMg=="
    with pytest.raises(AccessDenied):
        store.read("x-0.tar", 0, 1)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert store.read("x-0.tar", 0, 1) == CONTENT[:1]


def test_the_hub(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hf:// asks for, of a server that redirects as the Hub does. It alone gets the token."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    web.files["cdn/1"] = CONTENT
    asked = "/datasets/some/set/resolve/v1.0/a%20b/x-1.tar"
    web.moved[asked] = f"http://localhost:{web.port}/cdn/1"
    location = locate("hf://datasets/some/set@v1.0/a b/x-{1..1}.tar")
    assert isinstance(location.store, HttpStore) and location.store.ranged
    assert location.store.read("x-1.tar", 256, 9) == CONTENT[256:265]
    assert web.asked[2:] == [
        (asked, "bytes=256-264", "Bearer hf_secret"),
        ("/cdn/1", "bytes=256-264", None),
    ]
    web.moved.clear()
    with pytest.raises(ObjectMissing, match=r"hf://datasets/some/set@v1\.0/a b/x-1\.tar"):
        location.store.read("x-1.tar", 0, 1)
    with pytest.raises(StorageError, match="names no repository"):
        locate("hf://datasets/x.tar")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        (tmp_path / f"{i}.tar").write_bytes(CONTENT[i:])
    store = locate(f"pipe:cat {tmp_path}/{{0..1}}.tar", commands=True).store
    assert isinstance(store, UrlStore) and not store.ranged
    assert [e.name for e in store.list()] == ["000000.tar", "000001.tar"]
    assert store.read("000001.tar", 1000, 9) == CONTENT[1001:1010]
    (tmp_path / "1.tar").write_bytes(CONTENT)
    with pytest.raises(SourceChanged, match=r"pipe:/000001\.tar is another tar"):
        store.read("000001.tar")
    cut = locate(f"pipe:head -c 99 {tmp_path}/0.tar; exit 5", commands=True).store
    with pytest.raises(StreamFailed, match="the command ended with status 5"):
        cut.read("000000.tar")


@pytest.mark.parametrize(
    ("scheme", "program"), [("gs", "gsutil"), ("ais", "ais"), ("sftp", "curl"), ("scp", "curl")]
)
def test_other_schemes(
    scheme: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are handed to webdataset, which calls a program."""
    location = locate(f"{scheme}://bucket/p/x-{{0..1}}.tar")
    assert location.store.url == f"{scheme}://bucket/p" and location.tars == ("x-0.tar", "x-1.tar")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StreamFailed, match=f"{program} is not installed"):
        location.store.read("x-0.tar")
    (tmp_path / program).write_text("#!/bin/sh\necho $0 $*\n")
    (tmp_path / program).chmod(0o755)
    assert b"x-0.tar" in location.store.read("x-0.tar")
