"""One interface, two stores: a folder, and a real S3 server, also through a proxy that
misbehaves."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.storage import (
    AccessDenied,
    BucketMissing,
    LocalStore,
    NoRegularFile,
    ObjectMissing,
    StorageError,
    Store,
    Throttled,
    Truncated,
    Unreachable,
    file_name,
    open_store,
    read_document,
    s3,
    split_url,
)
from data_pipeline.storage.base import StorageFull, parse_s3
from data_pipeline.storage.local import SCRATCH
from model.errors import DataError
from tests.s3_server import SECRET, FaultProxy, environment


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "root").mkdir()
        return open_store(tmp_path / "root")
    return open_store(f"{request.getfixturevalue('bucket')}/some/prefix")


def test_objects(store: Store) -> None:
    assert list(store.list()) == [] and store.folders() == []
    assert store.create("a/b/x.bin", b"0123456789") and store.create("y", b"")
    assert not store.create("a/b/x.bin", b"other")  # never overwrites
    assert store.read("a/b/x.bin") == b"0123456789" and store.read("y") == b""
    assert store.read("a/b/x.bin", 3, 4) == b"3456" and store.read("a/b/x.bin", 7) == b"789"
    assert {(e.name, e.size) for e in store.list()} == {("a/b/x.bin", 10), ("y", 0)}
    assert (
        [e.name for e in store.list("a/")] == ["a/b/x.bin"] == [e.name for e in store.list("a/b/x")]
    )
    assert list(store.list("none/")) == [] and store.folders() == ["a"]
    store.replace("y", b"now")
    assert store.read("y") == b"now"
    with pytest.raises(ObjectMissing, match="none"):
        store.read("none")
    with pytest.raises(Truncated, match="ends at byte 10; 12 were expected"):
        store.read("a/b/x.bin", 8, 4)


def test_a_document_is_read_up_to_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.storage.base.MOST_DOCUMENT", 1000)
    for size in (0, 1, 1000):
        assert store.create(f"{size}", bytes(size)) and read_document(store, f"{size}") == bytes(
            size
        )
    store.create("1001", bytes(1001))
    with pytest.raises(DataError, match="1001 is larger than"):
        read_document(store, "1001")
    with pytest.raises(ObjectMissing):
        read_document(store, "none")


def test_a_closed_folder(tmp_path: Path) -> None:
    """Links inside it are followed, and it may be a link itself; none leads out, for reading,
    listing or writing."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "x").write_bytes(b"out")
    (inside / "y").write_bytes(b"in")
    for name, target in (("out", outside / "x"), ("in", inside / "y"), ("parts", outside)):
        (inside / name).symlink_to(target)
    (tmp_path / "link").symlink_to(inside)
    store, open_one = LocalStore(tmp_path / "link", closed=True), LocalStore(inside)
    assert (
        store.read("in") == b"in"
        and open_one.read("out") == b"out"
        and open_one.read("parts/x") == b"out"
    )
    assert {e.name: e.size for e in store.list()} == {"in": 2, "y": 2, "out": 0, "parts": 0}
    for name in ("out", "parts/x"):
        with pytest.raises(NoRegularFile, match="link out of"):
            store.read(name)
    for write, content in ((store.create, (b"",)), (store.replace, (b"",)), (store.remove, ())):
        with pytest.raises(StorageError, match="nothing is written there"):
            write("parts/x", *content)  # type: ignore[operator]
    (inside / ".tmp").symlink_to(outside)
    store.sweep()
    assert [p.name for p in outside.iterdir()] == ["x"] and (outside / "x").read_bytes() == b"out"


def test_large_objects_from_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART", 5 * 2**20)  # parts, as for objects over 32 MiB
    content = os.urandom(11 * 2**20 + 17)
    (tmp_path / "big").write_bytes(content)
    assert store.create("big", tmp_path / "big") and store.read("big") == content
    assert not store.create("big", content[:-1]) and store.read("big") == content
    store.sweep()
    assert store.read("big", 5 * 2**20 - 3, 6) == content[5 * 2**20 - 3 : 5 * 2**20 + 3]


def test_one_of_many_writers_wins(store: Store) -> None:
    won: list[bytes] = []
    start = threading.Barrier(8)

    def write(content: bytes) -> None:
        start.wait()
        if store.create("prize", content):
            won.append(content)

    threads = [threading.Thread(target=write, args=(b"%d" % i * 100_000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("prize") == won[0]


def test_urls(tmp_path: Path) -> None:
    assert split_url("s3://b/p/x.tar") == ("s3://b/p", "x.tar") and split_url("x.tar") == (
        ".",
        "x.tar",
    )
    assert split_url("/x.tar") == ("/", "x.tar") and split_url("data/x.tar") == ("data", "x.tar")
    assert split_url("s3://b/p//x.tar") == ("s3://b/p//", "x.tar") and split_url(
        "s3://b/x.tar"
    ) == ("s3://b", "x.tar")
    assert parse_s3("s3://bkt/p") == parse_s3("s3://bkt/p/") == ("bkt", "p/") and parse_s3(
        "s3://bkt"
    ) == ("bkt", "")
    assert parse_s3("s3://bkt/p//") == ("bkt", "p//") and parse_s3("s3://bkt//p") == ("bkt", "/p/")
    with pytest.raises(BucketMissing, match="no folder"):
        list(open_store(tmp_path / "none").list())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://SECRET@bucket", "gs://: this scheme is not known; use a local folder or s3://"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3:/bucket/x", "with less than two slashes"),
        ("s3:bucket", "with less than two slashes"),
        (Path("s3://bucket/x"), "with less than two slashes"),  # a Path folds the slashes
        ("s3://KEY:SECRET@bucket/x", "takes no key and secret.* by AWS_PROFILE"),
        ("s3://KEY:SEC/RET@bucket/x", "takes no key and secret"),
        ("s3://my bucket/x", "my bucket is no name of a bucket"),
        ("s3://bucket/x/../y", "knows no folders"),
    ],
)
def test_urls_that_are_none(url: str | Path, words: str) -> None:
    for use in (open_store, split_url):
        with pytest.raises(StorageError, match=words) as caught:
            use(url)
        assert "SEC" not in str(caught.value)


def prefixes(*categories: str) -> st.SearchStrategy[str]:
    """Draw keys of characters of these categories: S3 allows all but `.` and `..` between
    slashes."""
    part = st.text(
        st.characters(
            categories=categories or ["L", "N", "P", "S", "Z", "M", "Cc", "Cf"],
            exclude_characters="/",
        ),
        max_size=8,
    )
    return st.lists(part.filter(lambda text: text not in (".", "..")), max_size=5).map("/".join)


@given(prefixes(), prefixes())
def test_every_character_of_a_key_stands_for_itself(one: str, other: str) -> None:
    bucket, prefix = parse_s3(f"s3://bucket/{one}")
    assert bucket == "bucket" and prefix == (one if one.endswith("/") or not one else one + "/")
    stores = {parse_s3(f"s3://bucket/{text}") for text in (one, other)}
    names = {file_name(f"s3://bucket/{text}") for text in (one, other)}
    assert len(stores) == len(names) and not any("/" in name for name in names)
    folder, name = split_url(f"s3://bucket/{one}x/k.tar")
    assert parse_s3(folder) == ("bucket", f"{one}x/") and name == "k.tar"


def test_places_on_a_server_are_not_mixed_up(bucket: str) -> None:
    """`#` and `?` end a url of the web, `%` and `+` are codes in one; here they are characters of a
    key."""
    names = ["exp#1", "exp#2", "exp?a=1", "exp", "a b", "a%20b", "a+b", "p%2Fq", "p/q", "ü/日本/😀"]
    for name in names:
        assert open_store(f"{bucket}/{name}").create("x", name.encode())
    for name in names:
        store = open_store(f"{bucket}/{name}/")
        assert [e.name for e in store.list()] == ["x"] and store.read("x") == name.encode()
        assert store.url == f"{bucket}/{name}"
    assert {f"{name}/x" for name in names} == {e.name for e in open_store(bucket).list()}


@given(prefixes("L", "N", "P", "S", "Zs"))
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_keys_on_a_server(bucket: str, text: str) -> None:
    # SeaweedFS folds the others.
    key = "/".join(part for part in text.replace("\\", "").split("/") if part.strip("."))
    store = open_store(f"{bucket}/{uuid.uuid4().hex}{key}")
    assert (
        store.create("x#?", b"1")
        and [e.name for e in store.list()] == ["x#?"]
        and store.read("x#?") == b"1"
    )
    assert parse_s3(store.url) == parse_s3(f"{store.url}/")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "user:SECRET@host", "http://", "ftp://host"]
)
def test_an_endpoint_without_its_scheme(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, endpoint: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv(variable, endpoint)
    with pytest.raises(
        StorageError, match=f"{variable} is no url of a server.*as {variable}=http://localhost"
    ) as caught:
        open_store(bucket)
    assert "SECRET" not in str(caught.value)


def test_numbers_that_are_none(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDP_STORAGE_TIMEOUT", "soon")
    with pytest.raises(StorageError, match="ADDP_STORAGE_TIMEOUT=soon is no number above 0"):
        open_store(bucket)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(StorageError):
        open_store(file).create("x", b"y")
    scratch = tmp_path / "root" / SCRATCH / "full"
    scratch.parent.mkdir(parents=True)
    scratch.symlink_to("/dev/full")  # every write to it fails as on a full disk
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    scratch.rename(scratch.with_name(uuid.UUID(int=0).hex))
    with pytest.raises(StorageFull, match="Make room"):
        open_store(tmp_path / "root").create("x", b"y")
    assert not list((tmp_path / "root").rglob("x"))


def test_objects_follow_the_umask(tmp_path: Path) -> None:
    """Shards, plans, manifests, results: a file of a mode of its own may be their source."""
    source, store = tmp_path / "source", LocalStore(tmp_path / "store")
    source.write_bytes(b"x")
    source.chmod(0o600)
    before = os.umask(0o027)
    try:
        assert store.create("folder/a", source) and store.create("folder/b", b"x")
        store.replace("folder/c", b"x")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "store" / "folder").iterdir()} == {0o640}


def test_leftovers_are_no_objects(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create("x", b"1")
    (tmp_path / SCRATCH).mkdir(exist_ok=True)
    (tmp_path / SCRATCH / "half").write_bytes(b"of a killed writer")
    assert [e.name for e in store.list()] == ["x"] and store.folders() == []
    store.sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


@pytest.fixture
def through(
    proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Store, FaultProxy, bytes]:
    """Return (a store behind the proxy, the proxy, the content of its object "x")."""
    content = os.urandom(3_000_000)
    open_store(bucket).create("x", content)
    for name, value in environment(
        proxy.port, ADDP_STORAGE_TIMEOUT="1", AWS_MAX_ATTEMPTS="3"
    ).items():
        monkeypatch.setenv(name, value)
    return open_store(bucket), proxy, content


def test_a_body_that_breaks_off_is_read_on(through: tuple[Store, FaultProxy, bytes]) -> None:
    store, proxy, content = through
    proxy.cut_after = 700_000
    assert store.read("x") == content and store.read("x", 100, 2_500_000) == content[100:2_500_100]
    assert proxy.faults >= 6
    proxy.cut_after = 0  # no byte ever arrives
    with pytest.raises((Truncated, Unreachable)):
        store.read("x")


def test_latency(through: tuple[Store, FaultProxy, bytes]) -> None:
    store, proxy, content = through
    proxy.latency = 0.02
    assert store.read("x") == content
    # May be slower than the time-out, and then be taken for lost once.
    store.create("slow", content)
    assert store.read("slow") == content


def test_silence_and_refusal_end_in_a_named_error(through: tuple[Store, FaultProxy, bytes]) -> None:
    store, proxy, _ = through
    proxy.refuse = True
    with pytest.raises(Unreachable, match="no answer after 3 tries"):
        store.read("x")
    proxy.heal()
    proxy.black_hole = True
    with pytest.raises(Unreachable, match="no answer after 3 tries"):
        store.create("y", b"z")


def test_a_storm_of_503(through: tuple[Store, FaultProxy, bytes]) -> None:
    store, proxy, content = through
    proxy.busy_probability = 0.3
    for i in range(10):
        try:
            assert store.read("x", i, 10) == content[i : i + 10]
        except Throttled:
            continue
    proxy.busy_probability = 1.0
    with pytest.raises(Throttled, match="slow down"):
        store.read("x", 0, 10)


def test_an_upload_whose_answer_is_lost_is_not_stored_twice(
    through: tuple[Store, FaultProxy, bytes],
) -> None:
    store, proxy, content = through
    proxy.cut_after, proxy.cut_probability = 0, 0.7
    for i in range(6):
        try:
            # True, or False where its own first try had arrived.
            store.create(f"lost-{i}", content[:1000])
        except (Truncated, Unreachable):
            continue
        proxy.heal()
        assert store.read(f"lost-{i}") == content[:1000]
        proxy.cut_after = 0


def test_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "x")
    for use in (
        lambda s: s.create("x", b"y"),
        lambda s: s.read("x"),
        lambda s: list(s.list()),
        lambda s: s.folders(),
    ):
        with pytest.raises(AccessDenied, match="check the credentials") as caught:
            use(open_store(bucket))
        assert SECRET not in str(caught.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="finds no credentials"):
        open_store(bucket).read("x")
    monkeypatch.undo()


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(BucketMissing, match="no bucket no-such-bucket"):
        list(open_store("s3://no-such-bucket/x").list())
