"""One cache for a host's ranks: each shard is downloaded once, what is in use stays, and crashes
leave nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.shards.manifest import read_manifest
from data_pipeline.storage import open_store
from data_pipeline.streaming.loader import LoaderOptions, TokenLoader
from data_pipeline.streaming.shard_cache import ShardCache
from model.errors import ConfigError
from tests.patience import PATIENCE
from tests.s3_server import FaultProxy, environment
from tests.token_sets import write_tokens

RUNNER = Path(__file__).parent / "rank.py"
ROWS = [50] * 8


def rank(
    url: str, log: Path, number: int, ranks: int, steps: int, cache: Path, env: dict[str, str]
) -> subprocess.Popen[str]:
    arguments = [url, str(log), str(number), str(ranks), str(steps), str(cache)]
    return subprocess.Popen(
        [sys.executable, str(RUNNER), *arguments],
        env={**os.environ, **env, "PYTHONPATH": str(RUNNER.parents[3])},
        stderr=subprocess.PIPE,
        text=True,
    )


def records(log: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a rank's log; a kill may cut the last one."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def test_ranks_of_a_host_download_each_byte_once(
    bucket: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    url = f"{bucket}/data"
    size = sum(s.bytes for s in write_tokens(open_store(url), ROWS).shards)
    env = environment(proxy.port)
    processes = [
        rank(url, tmp_path / f"log-{r}", r, 2, 20, tmp_path / "cache", env) for r in range(2)
    ]
    assert [p.wait(PATIENCE) for p in processes] == [0, 0], [
        p.stderr.read() for p in processes if p.stderr
    ]
    manifests = 2 * len(open_store(url).read("dataset.json"))
    assert size < proxy.response_bytes < size + manifests + 40_000  # headers of the answers
    before = proxy.response_bytes
    # A later run finds them.
    again = rank(url, tmp_path / "again", 0, 1, 20, tmp_path / "cache", env)
    assert again.wait(PATIENCE) == 0 and proxy.response_bytes - before < manifests + 5_000


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.long)])
def test_killed_ranks_consume_each_position_once(bucket: str, tmp_path: Path, kills: int) -> None:
    """Two ranks share a cache on S3 data; both are killed at a random moment and go on from their
    saved state."""
    url, cache, chance = f"{bucket}/data", tmp_path / "cache", random.Random(kills)
    write_tokens(open_store(url), ROWS)
    logs = [tmp_path / f"log-{r}" for r in range(2)]
    steps, hit = 30 * (kills + 2), 0
    while True:
        processes = [rank(url, logs[r], r, 2, steps, cache, {}) for r in range(2)]
        before = len(records(logs[0]))
        while len(records(logs[0])) <= before and processes[0].poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.25))
        if hit < kills:
            for process in processes:
                hit += process.poll() is None
                process.send_signal(signal.SIGKILL)
        codes = [p.wait(PATIENCE) for p in processes]
        if hit >= kills and codes == [0, 0]:
            break
        # The state that both ranks agree on, as a checkpoint would.
        done = min(len(records(log)) for log in logs)
        for log in logs:
            log.write_text("".join(json.dumps(r) + "\n" for r in records(log)[:done]))
    assert hit >= kills and not list(cache.glob("??/*.part"))
    taken = [(r["step"], p) for log in logs for r in records(log) for p in r["positions"]]
    assert len(taken) == len(set(taken)) == steps * 40
    reference = TokenLoader(
        url, global_batch=40, seed=0, options=LoaderOptions(window=2, cache=cache)
    )
    for log, offset in zip(logs, (0, 20), strict=True):
        for r in records(log):
            assert r["labels"] == reference.batch(r["step"], offset, 20).labels.tolist()
    reference.close()


def test_eviction_keeps_what_is_in_use(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/data"
    manifest = write_tokens(open_store(url), ROWS)
    size = manifest.shards[0].bytes
    incidents: list[dict[str, Any]] = []
    cache = ShardCache(tmp_path / "cache", 3 * size, incidents.append)
    contents = [open_store(url).read(e.name) for e in manifest.shards]
    for entry, content in zip(manifest.shards[:3], contents, strict=False):
        cache.store(entry, content)
    held = cache.hold(manifest.shards[0])
    assert held is not None
    for entry, content in zip(manifest.shards[3:], contents[3:], strict=True):
        cache.store(entry, content)
    kept = {p.stem for p in (tmp_path / "cache").glob("??/*.tar")}
    assert (
        manifest.shards[0].sha256 in kept
        and manifest.shards[7].sha256 in kept
        and len(kept) == 3
        and not incidents
    )
    also = [cache.hold(e) for e in manifest.shards if e.sha256 in kept]
    cache.store(manifest.shards[1], contents[1])  # nothing can go: over the limit, and said
    assert incidents[0]["event"] == "cache over its limit"
    held.close()
    for file in also:
        assert file is not None
        file.close()


def test_a_small_cache_serves_a_whole_run(bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/data"
    manifest = write_tokens(open_store(url), ROWS)
    limit = 5 * manifest.shards[0].bytes
    options = LoaderOptions(window=1, cache=tmp_path / "cache", cache_bytes=limit)
    reader = TokenLoader(url, global_batch=40, seed=0, options=options)
    seen = [label for step in range(20) for label in reader.batch(step, 0, 40).labels.tolist()]
    assert sorted(seen[:400]) == sorted(seen[400:]) == list(range(400))
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("??/*")) <= limit
    reader.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path, bucket: str) -> None:
    manifest = write_tokens(open_store(f"{bucket}/data"), ROWS)
    cache = ShardCache(tmp_path, 10**9, lambda record: None)
    leftover = cache.path(manifest.shards[0]).with_suffix(".dead.part")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    cache.store(manifest.shards[1], b"x")
    assert not leftover.exists() and read_manifest(f"{bucket}/data") == manifest


def refused(number: int) -> Callable[[Any, int], None]:
    """Do as flock does where there are no locks: NFS without lockd, Lustre without `flock`, some
    FUSE."""

    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def exclusive_needs_writing(file: Any, operation: int) -> None:
    """Do as NFS does, where an exclusive lock is a lock for writing."""
    if operation & fcntl.LOCK_EX:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def without_effect(file: Any, operation: int) -> None:
    """Do as file systems do that only pretend to lock."""


@pytest.mark.parametrize(
    ("flock", "words"),
    [
        (refused(errno.ENOLCK), "No locks available"),
        (refused(errno.EOPNOTSUPP), "Operation not supported"),
        (refused(errno.ENOSYS), "Function not implemented"),
        (exclusive_needs_writing, "Bad file descriptor"),
        (without_effect, "a lock that is held is given a second time"),
    ],
)
def test_a_file_system_without_locks_is_refused(
    flock: Callable[[Any, int], None],
    words: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tokens(open_store(f"{bucket}/data"), ROWS)
    options = LoaderOptions(cache=tmp_path / "cache")
    TokenLoader(f"{bucket}/data", global_batch=40, seed=0, options=options).close()
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr("data_pipeline.streaming.shard_cache.fcntl.flock", flock)
    with pytest.raises(
        ConfigError,
        match=rf"data\.cache: locks do not work on .*{tmp_path}/cache \({words}\); give a fol",
    ):
        TokenLoader(f"{bucket}/data", global_batch=40, seed=0, options=options)
    assert not list((tmp_path / "cache").iterdir())
    write_tokens(open_store(tmp_path / "here"), ROWS)  # data in a folder need no cache
    TokenLoader(tmp_path / "here", global_batch=40, seed=0, options=options).close()
