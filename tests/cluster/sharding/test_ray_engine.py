"""The Ray engine on a real cluster of two nodes on this machine, with a worker and a node killed on
the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_pipeline.storage import open_store
from tests.cluster.sharding_jobs import (
    command,
    contents,
    plan,
    succeed,
    tokenize,
    undisturbed,
    visible_shards_are_whole,
)
from tests.patience import PATIENCE, until

ROWS = 1  # 120 shards: the job is still at work when its node is killed
NODES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


@pytest.fixture
def cluster() -> Iterator[object]:
    os.environ.update(NODES)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def workers() -> list[psutil.Process]:
    """Processes that make a shard just now."""
    return [p for p in psutil.process_iter() if "ray::_make_shard" in " ".join(_cmdline(p))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("runs", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_killed_worker_and_a_killed_node_lose_nothing(
    cluster: object, images: Path, tokenizer_file: Path, tmp_path: Path, runs: int
) -> None:
    whole = undisturbed(images, str(tmp_path / "whole"), tokenizer_file, ROWS)
    for run in range(runs):
        disturbed(
            cluster, whole, str(tmp_path / f"out-{run}"), images, tokenizer_file, random.Random(run)
        )


def disturbed(
    cluster: object,
    whole: dict[str, bytes],
    out: str,
    images: Path,
    tokenizer_file: Path,
    chance: random.Random,
) -> None:
    """One job on a head of one slot and a node of one slot; a worker is killed, then the node."""
    plan(images, out, tokenizer_file, ROWS)
    node = cluster.add_node(num_cpus=1)  # type: ignore[attr-defined]
    store = open_store(out)
    run = command(
        "run",
        out,
        "--tokenizer",
        str(tokenizer_file),
        "--engine",
        "ray",
        "--ray-address",
        cluster.address,  # type: ignore[attr-defined]
        "--device",
        "cpu",
        "--batch",
        "4",
        "--finalize",
    )
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victims = until(workers, alive=lambda: process.poll() is None, pause=0.05)
    victims[0].send_signal(signal.SIGKILL)
    until(lambda: list(store.list("parts/")), alive=lambda: process.poll() is None)
    visible_shards_are_whole(store, whole)
    time.sleep(chance.uniform(0, 1))
    assert len(list(store.list("parts/"))) < 120
    cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
    text, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "dataset.json is written" in text, errors
    assert contents(store) == whole


def test_mistakes_are_told_as_elsewhere(images: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    succeed(
        "plan", str(images), out, "--tokenizer", str(tokenizer_file), "--rows", "60", "--views", "2"
    )
    run = ("run", out, "--tokenizer", str(tokenizer_file), "--engine", "ray", "--device", "cpu")
    done = tokenize(*run, "--source", str(tmp_path / "gone"), env=NODES)
    assert (
        done.returncode == 74
        and "gone: none of the 8 planned images that were looked for" in done.stderr
    )
    assert "Traceback" not in done.stderr and not list(open_store(out).list("parts/"))
    done = tokenize(*run, "--ray-address", "127.0.0.1:1", env=NODES)
    assert done.returncode == 78 and "there is no Ray cluster at 127.0.0.1:1" in done.stderr, (
        done.stderr
    )
