"""What a configuration needs of a node: real folders, and a real store that is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.storage import open_store
from tests.s3_server import FaultProxy
from tests.trainer.launching import MAGE, SMALL
from tests.trainer.preflight.finding_states import state, text
from trainer import costs
from trainer.config.reading import load_config
from trainer.config.schema import RunConfig
from trainer.preflight.doctor.needs import (
    Cadence,
    cadence,
    check_cache,
    check_places,
    check_room,
    check_saving,
    check_store,
    file_system,
    measure_store,
    measure_writing,
    places,
)

MIB = 2**20


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*MAGE, *SMALL, *overrides])


def test_what_is_seen_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    seen = config(f"data.tokens={tmp_path}/tokens")
    assert places(seen) == {"data.tokens": f"{tmp_path}/tokens"}
    assert text(check_places(seen), "ok") == "seen: data.tokens"
    unseen = config(
        f"data.tokens={tmp_path}/none", f"tokenizer.weights={tmp_path}/none.safetensors"
    )
    found = text(check_places(unseen), "FAILED")
    assert "data.tokens is not seen" in found and "tokenizer.weights is not seen" in found


def test_a_bucket_that_may_not_be_seen(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = config(f"checkpoint.upload={bucket}/run")
    assert state(check_places(there), "data and weights") == "ok"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "access denied" in text(check_places(there), "FAILED")


def test_a_cache(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path} nfs4 rw 0 0\n/dev/sda / ext4 rw 0 0\n")
    small, large = (
        config(f"data.cache={tmp_path}/cache", f"data.cache_gib={gib}") for gib in (1e-9, 2**29)
    )
    assert state(check_cache(small, tmp_path / "none"), "data.cache") == "ok"
    assert "the cache may take" in text(check_cache(large, tmp_path / "none"), "warning")
    assert "network file system (nfs4)" in text(check_cache(small, mounts), "warning")
    assert list(check_cache(config())) == []
    assert not (tmp_path / "cache").exists()


def test_which_file_system(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw\nserver:/b /data nfs rw\nc /data/my\\040fast tmpfs rw\n")
    assert file_system(Path("/home/me"), mounts) == "ext4"
    assert file_system(Path("/data/x"), mounts) == "nfs"
    assert file_system(Path("/data/my fast/x"), mounts) == "tmpfs"
    assert file_system(Path("/"), tmp_path / "none") == ""


def test_how_often_a_run_saves(tmp_path: Path) -> None:
    unknown = cadence(config(f"run={tmp_path}"), 2)
    if costs.device_peak() is None:
        assert unknown.seconds is None
    assert unknown.every == 4 and unknown.size > MIB / 2
    rows = [{"step": step, "seconds_per_step": 0.5} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cadence(config(f"run={tmp_path}"), 2).seconds == 2.0


def test_saving(tmp_path: Path) -> None:
    assert measure_writing(tmp_path, MIB) > 0 and not list(tmp_path.iterdir())
    slow = Cadence(size=200 * MIB, every=4, seconds=1.0)
    found = list(check_saving(config(), slow, 2, 10 * MIB, grace=60))
    assert state(found, "saving") == "FAILED" and not any(one.makes_unfit for one in found)
    assert "100.0 MiB, in 10.0 s, and one is made every 1.0 s" in found[0].text
    assert state(check_saving(config(), slow, 2, 1000 * MIB, grace=60), "saving") == "ok"
    unknown = slow._replace(seconds=None)
    assert state(check_saving(config(), unknown, 2, MIB, grace=101), "saving") == "ok"
    late = text(check_saving(config(), unknown, 2, MIB, grace=99), "FAILED")
    assert "is killed after 99 s; start it with --grace above 100" in late
    huge = Cadence(size=2.0**60, every=4, seconds=None)
    assert "checkpoint.asynchronous=false" in text(
        check_saving(config(), huge, 2, 1e30, grace=60), "FAILED"
    )


def test_room_for_checkpoints(tmp_path: Path) -> None:
    small, huge = (Cadence(size, 4, None) for size in (MIB, 2.0**60))
    assert state(check_room(config(f"run={tmp_path}"), small), "disk space") == "ok"
    assert "lower checkpoint.keep" in text(check_room(config(f"run={tmp_path}"), huge), "FAILED")


def test_a_store_that_is_too_slow_for_the_saves(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in front of a real store answers late. Nothing is left on the store."""
    saves = Cadence(size=64 * MIB, every=4, seconds=1e6)
    run = config(f"checkpoint.upload={bucket}/run")
    assert state(check_store(run, saves, MIB), "checkpoint.upload") == "ok"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
    proxy.latency = 0.2
    slow = list(check_store(run, saves._replace(seconds=10.0), MIB))
    assert state(slow, "checkpoint.upload") == "warning" and "some are not uploaded" in slow[0].text
    assert "raise checkpoint.every" in slow[0].todo
    proxy.heal()
    unknown = list(check_store(run, saves._replace(seconds=None), MIB))
    assert unknown[0].state == "ok" and "checkpoint.every (4)" in unknown[0].todo
    assert not list(open_store(f"{bucket}/run").list())


def test_a_store_that_is_not_there(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.refuse = True
    run = config(f"checkpoint.upload={bucket}/run")
    saves = Cadence(size=MIB, every=4, seconds=None)
    assert state(check_store(run, saves, MIB), "checkpoint.upload") == "FAILED"


def test_a_folder_as_a_store(tmp_path: Path) -> None:
    run = config(f"checkpoint.upload={tmp_path}/copies/run")
    saves = Cadence(size=MIB, every=4, seconds=None)
    assert state(check_store(run, saves, MIB), "checkpoint.upload") == "ok"
    assert list(check_store(config(), saves)) == [] and not list(tmp_path.iterdir())
    put, read = measure_store(open_store(tmp_path / "store"), 1000)
    assert put > 0 and read > 0
