"""The corruption matrix: every fault of a shard, a cache or a server, and its outcome. Never a
silent loss.

The end of the test run prints it as a table.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shards.format import Layout
from data_pipeline.storage import AccessDenied, Store, Unreachable, open_store
from data_pipeline.streaming.fetch import ShardDamaged
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from tests.patience import until
from tests.s3_server import KEY, SECRET, FaultProxy, environment
from tests.token_sets import TOKENS, samples_of, write_tokens

ROWS = [30] * 6
Property = Callable[[str, object], None]
BAD = 2  # the shard that is harmed
LAYOUT = Layout(2, TOKENS)
NAME = f"tokens-{BAD:06d}.tar"


def flipped(position: int) -> Callable[[bytes], bytes]:
    return lambda content: (
        content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
    )


HARM: dict[str, Callable[[bytes], bytes] | None] = {
    "bit flip in tokens": flipped(LAYOUT.stride * 3 + LAYOUT.tokens_offset + 5),
    "bit flip in a label": flipped(LAYOUT.stride * 3 + LAYOUT.label_offset + 9),
    "bit flip in a tar header": flipped(LAYOUT.stride * 3 + 2),
    "bit flip in an npy header": flipped(LAYOUT.stride * 3 + 512 + 20),
    "bit flip in the end blocks": flipped(LAYOUT.stride * 30 + 700),
    "cut at a row": lambda c: c[: LAYOUT.stride * 11],
    "cut at a member": lambda c: c[: LAYOUT.stride * 11 + LAYOUT.label_offset - 512],
    "cut in a header": lambda c: c[: LAYOUT.stride * 11 + 100],
    "cut of the last byte": lambda c: c[:-1],
    "zero length": lambda c: b"",
    "bytes of another shard": None,
    "missing": None,
}


@contextmanager
def reading(url: str, **options: Any) -> Iterator[tuple[TokenLoader, list[dict[str, Any]]]]:
    incidents: list[dict[str, Any]] = []
    options = {"window": 2, "retry_seconds": 0.0, **options}
    reader = TokenLoader(
        url, global_batch=18, seed=0, options=LoaderOptions(**options), incident=incidents.append
    )
    yield reader, incidents
    reader.close()


def once(
    incidents: list[dict[str, Any]], words: str, do: Callable[[], None], seconds: float = 0.0
) -> None:
    """Do something in a thread, so many seconds after an incident that holds the words."""

    def act() -> None:
        until(lambda: words in str(incidents))
        time.sleep(seconds)
        do()

    threading.Thread(target=act, daemon=True).start()


def epoch_of(reader: TokenLoader, epoch: int = 0) -> tuple[list[int], list[int]]:
    """Read one epoch, and return (samples that count, positions with weight 0)."""
    counted, lost = [], []
    steps = reader.schedule.steps_per_epoch
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch = reader.batch(step, 0, 18)
        weights = np.ones(18) if batch.weights is None else batch.weights
        counted += [s for s, w in zip(samples_of(batch.ids), weights, strict=True) if w]
        lost += [step * 18 + i for i in range(18) if not weights[i]]
    return counted, lost


def harm(store: Store, fault: str) -> None:
    content = store.read(NAME)
    change = HARM[fault]
    if change is not None:
        store.replace(NAME, change(content))
    elif fault == "missing":
        remove(store, NAME)
    else:
        store.replace(NAME, store.read("tokens-000004.tar"))


def remove(store: Store, name: str) -> None:
    if store.url.startswith("s3://"):
        store._s3.delete_object(**store._key(name))  # type: ignore[attr-defined]
    else:
        (Path(store.url) / name).unlink()


@pytest.fixture(params=["folder", "s3 with a cache", "s3 without"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    if request.param == "folder":
        return str(tmp_path / "data"), {}
    url = f"{request.getfixturevalue('bucket')}/data"
    return url, {"cache": tmp_path / "cache"} if "with a" in request.param else {}


@pytest.mark.parametrize("fault", HARM)
def test_a_harmed_shard(
    source: tuple[str, dict[str, Any]], fault: str, record_property: Property
) -> None:
    url, options = source
    store = open_store(url)
    write_tokens(store, ROWS)
    harm(store, fault)
    with (
        reading(url, **options) as (reader, _),
        pytest.raises(ShardDamaged, match=r"tokens-000002\.tar"),
    ):
        epoch_of(reader)
    with reading(url, on_bad_shard="quarantine", **options) as (reader, incidents):
        counted, lost = epoch_of(reader)
    expected = [s for s in range(180) if s // 30 != BAD]
    # Nothing else is lost, nothing is shifted.
    assert sorted(counted) == expected and len(lost) == 30
    quarantined = [i for i in incidents if i["event"] == "shard quarantined"]
    assert quarantined and quarantined[0]["shard"] == NAME and quarantined[0]["rows"] == 30
    record_property(
        "corruption",
        (fault, source_name(url, options), "stops and names it; or its rows get weight 0"),
    )


def source_name(url: str, options: dict[str, Any]) -> str:
    return "folder" if not url.startswith("s3") else ("s3, cache" if options else "s3, memory")


@pytest.fixture
def remote(bucket: str, tmp_path: Path) -> tuple[str, Path, list[int]]:
    """Return (data set on S3, cache folder, all samples in order)."""
    write_tokens(open_store(f"{bucket}/data"), ROWS)
    return f"{bucket}/data", tmp_path / "cache", list(range(180))


@pytest.mark.parametrize("fault", ["bit flip in tokens", "cut at a row", "zero length"])
def test_a_harmed_cache_is_mended(
    remote: tuple[str, Path, list[int]], fault: str, record_property: Property
) -> None:
    url, cache, everything = remote
    with reading(url, cache=cache) as (reader, _):
        assert sorted(epoch_of(reader)[0]) == everything
    change = HARM[fault]
    assert change is not None
    files = list(cache.glob("??/*.tar"))
    assert len(files) == 6
    for file in files:
        file.write_bytes(change(file.read_bytes()))
    with reading(url, cache=cache) as (reader, incidents):
        counted, lost = epoch_of(reader)
    assert sorted(counted) == everything and not lost
    assert sum(i["event"] == "damaged in the cache, fetched again" for i in incidents) == 6
    record_property("corruption", (fault, "cache", "fetched again"))


def test_the_cache_goes_away_or_cannot_be_written(
    remote: tuple[str, Path, list[int]], tmp_path: Path, record_property: Property
) -> None:
    url, cache, everything = remote
    with reading(url, cache=cache) as (reader, incidents):
        reader.batch(0, 0, 18)
        cache.rename(tmp_path / "gone")  # at once: the next window is being stored just now
        shutil.rmtree(tmp_path / "gone")  # by someone who wanted the space
        assert sorted(epoch_of(reader)[0]) == everything
    file = tmp_path / "file"
    file.write_bytes(b"")
    with reading(url, cache=file / "cache") as (reader, incidents):
        assert sorted(epoch_of(reader)[0]) == everything
    assert any(i["event"] == "cache not usable, shard kept in memory" for i in incidents)
    record_property("corruption", ("removed, or not writable", "cache", "kept in memory"))


def test_a_full_disk(remote: tuple[str, Path, list[int]], record_property: Property) -> None:
    """The kernel refuses to let files grow, as on a full disk."""
    url, cache, everything = remote
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with reading(url, cache=cache) as (reader, incidents):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        try:
            counted, _ = epoch_of(reader)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(counted) == everything
    for file in cache.glob("??/*"):  # what was stored once there was room again is whole
        assert file.suffix == ".tar" and hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    assert any(i["event"] == "cache not usable, shard kept in memory" for i in incidents)
    record_property("corruption", ("disk full during a download", "cache", "kept in memory"))


@pytest.fixture
def behind(
    remote: tuple[str, Path, list[int]], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, list[int], FaultProxy]:
    for name, value in environment(
        proxy.port, ADDP_STORAGE_TIMEOUT="1", AWS_MAX_ATTEMPTS="1"
    ).items():
        monkeypatch.setenv(name, value)
    return (*remote, proxy)


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_the_server_is_down_for_a_while(
    behind: tuple[str, Path, list[int], FaultProxy], seconds: float, record_property: Property
) -> None:
    url, cache, everything, proxy = behind
    with reading(url, cache=cache, retry_seconds=300.0) as (reader, incidents):
        reader.batch(0, 0, 18)
        proxy.refuse = True
        once(incidents, "storage fault", proxy.heal, seconds)
        assert sorted(epoch_of(reader)[0]) == everything
    assert any(i["event"] == "storage fault" for i in incidents)
    with reading(url, cache=cache / "other", retry_seconds=1.0) as (reader, _):
        proxy.refuse = True
        with pytest.raises(Unreachable, match="no answer"):
            epoch_of(reader)
    record_property(
        "corruption", ("down for a while", "server", "waits and goes on; named error in the end")
    )


def test_a_straggling_request_is_asked_again(
    behind: tuple[str, Path, list[int], FaultProxy], record_property: Property
) -> None:
    url, cache, everything, proxy = behind
    with reading(url, cache=cache, retry_seconds=60.0, hedge_after=0.2) as (reader, incidents):
        proxy.black_hole = True
        once(incidents, "asked again", proxy.heal)
        assert sorted(epoch_of(reader)[0]) == everything
    assert any(i["event"] == "slow request, asked again" for i in incidents)
    record_property("corruption", ("a request hangs", "server", "asked again"))


def test_bodies_that_break_off(
    behind: tuple[str, Path, list[int], FaultProxy], record_property: Property
) -> None:
    url, cache, everything, proxy = behind
    with reading(url, cache=cache, retry_seconds=60.0) as (reader, _):
        proxy.cut_after, proxy.cut_probability = 20_000, 0.7
        assert sorted(epoch_of(reader)[0]) == everything
    assert proxy.faults > 0
    record_property("corruption", ("bodies break off", "server", "read on from there"))


def test_credentials_that_expire_and_are_renewed(
    remote: tuple[str, Path, list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Property,
) -> None:
    url, cache, everything = remote
    file = tmp_path / "credentials"

    def credentials(secret: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {secret}\n")

    def renewed() -> None:
        """In two writes, between which others look at the file."""
        file.write_text("[default")
        seen = len(incidents)
        until(lambda: len(incidents) > seen + 1)
        credentials(SECRET)

    credentials(SECRET)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with reading(url, cache=cache, retry_seconds=30.0) as (reader, incidents):
        reader.shards[0].store = expired(url, credentials)
        once(incidents, "access denied", renewed)
        assert sorted(epoch_of(reader)[0]) == everything
    assert any("access denied" in i.get("error", "") for i in incidents)
    with reading(url, cache=cache / "other", retry_seconds=1.0) as (reader, _):
        reader.shards[0].store = expired(url, credentials)
        with pytest.raises(AccessDenied):
            epoch_of(reader)
    record_property(
        "corruption", ("credentials expire", "server", "looked up anew; named error in the end")
    )


def expired(url: str, credentials: Callable[[str], None]) -> Store:
    """A store whose credentials the server no longer takes."""
    credentials("expired-secret")
    store = open_store(url)
    time.sleep(0.05)
    return store
