"""Exactly once, at length: `pytest -m long tests/cluster/commands/test_tokenize_chaos.py`.
docs/tokenize.md has its result."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data_pipeline.storage import open_store
from tests.cluster.sharding_jobs import contents, plan, run_with_kills, succeed, undisturbed
from tests.s3_server import FaultProxy, environment

RUNS = 60
ROWS = 4  # 120 images in 30 shards: 60 uploads a run


@pytest.mark.long
def test_many_runs_with_kills_give_the_undisturbed_bytes(
    images: Path,
    tokenizer_file: Path,
    bucket: str,
    proxy: FaultProxy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half of the runs on a folder, half on S3 with 20 ms of latency; up to four kills each, then
    one run is let through and finalizes."""
    whole = undisturbed(images, str(tmp_path / "whole"), tokenizer_file, ROWS)
    kills = 0
    for run in range(RUNS):
        on_s3 = run % 2 == 1
        out = f"{bucket}/run-{run}" if on_s3 else str(tmp_path / f"run-{run}")
        env = environment(proxy.port) if on_s3 else {}
        proxy.latency = 0.02
        plan(images, out, tokenizer_file, ROWS)
        store, arguments = open_store(out), ["run", out, "--tokenizer", str(tokenizer_file)]
        span = 1.2 if on_s3 else 0.3
        kills += run_with_kills(
            arguments, store, whole, random.Random(run), span, env, most_kills=3
        )
        succeed(*arguments, "--finalize", env=env)
        assert contents(store) == whole
        with capsys.disabled():
            print(
                json.dumps(
                    {"run": run, "place": "s3" if on_s3 else "folder", "kills so far": kills}
                ),
                flush=True,
            )
    assert kills >= RUNS
